"""Measure everything on a GPU: correctness tests, Haar transforms, models in training and inference, latency, scaling.

    python -m benchmarks.gpu                    # again, until it says that all is done
    python -m benchmarks.gpu --only latency     # some steps, by the beginning of their names
    python -m benchmarks.gpu --tiny --device cpu --out output/tiny      # does every step start?

Each step is one of the other measuring programs, in a process of its own, and leaves one JSON file. A step whose file
exists is not run again, so the command can be repeated after anything; it stops by itself when --minutes are over.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.baseline import BASELINE_CFGS
from benchmarks.common import build_parser, environment, write_results
from benchmarks.models import PREFIX
from wsfvit.utils.errors import UserError, run_main

MODELS = ["wsfvit_t_224", "wsfvit_dwt_t_224", "maxvit_tiny_tf_224", "convnext_tiny"]
TINY_MODELS = ["wsfvit_p0_224", "fused:wsfvit_p0_224", "resnet10t"]
# A step has to end within one call, so what takes long is apart.
TESTS = {
    "tests_kernels": ["tests/wavelets/test_triton.py"],
    "tests_models": ["tests/models"],
    "tests_transforms": ["tests/wavelets", "--ignore", "tests/wavelets/test_triton.py"],
}
MOST_WORKERS = 8
# Programs that compile ahead, each of which holds a model's training in the GPU's memory.
AT_ONCE = 3
HALF = ["--dtype", "bfloat16", "--amp"]
# What inductor does without this project's options: more bytes by counts, but less arithmetic.
PLAIN = [
    "--compile-options",
    "realize_opcount_threshold=30",
    "realize_reads_threshold=4",
    "realize_acc_reads_threshold=8",
]


@dataclass(frozen=True)
class Step:
    """A program to run.

    Attributes:
        name: Of its file of results.
        arguments: What follows ``python -m``, without --device and --out.
        variables: Of its environment.
        under: Command that runs Python, such as a checker of memory.
        ahead: Arguments of programs that leave in the compiler's cache what this one will compile, some at a time.
    """

    name: str
    arguments: list[str]
    variables: dict[str, str] = field(default_factory=dict)
    under: tuple[str, ...] = ()
    ahead: tuple[list[str], ...] = ()

    @property
    def measures(self) -> bool:
        """Whether the program writes its own results, which the tests do not."""
        return self.arguments[0].startswith("wsfvit.")


def plan(device: str, tiny: bool) -> Iterator[Step]:
    """All steps, the most wanted first; ``tiny``: the same ones on the smallest models and images."""
    required = {"WSFVIT_REQUIRE_GPU": "1"} if device.startswith("cuda") else {}
    for name, paths in TESTS.items():
        chosen = ["tests/wavelets/test_eager.py"] if tiny else paths
        yield Step(name, [*_pytest(), "--device", device.partition(":")[0], *chosen], required)
    yield _models("models_t_train", MODELS, 256, tiny, [*HALF, "--train"])
    yield _models("models_t_train_compiled", MODELS, 256, tiny, [*HALF, "--train", "--compile"])
    yield from _wavelets(device, tiny)
    for name, models, options in (
        ("plain", MODELS[:1] + MODELS[2:], PLAIN),
        ("budget", MODELS[:1], ["--memory-budget", "0.5"]),
    ):
        yield _models(f"models_t_train_{name}", models, 256, tiny, [*HALF, "--train", "--compile", *options])
    backends = ("reference", "triton") if device.startswith("cuda") else ("reference",)
    for backend in backends:
        fused = _models(f"models_t_fused_{backend}", ["fused:wsfvit_t_224"], 256, tiny, [*HALF, "--compile"])
        yield replace(fused, variables={"WSFVIT_WAVELET_BACKEND": backend})
    for family in ("wsfvit", "wsfvit_dwt"):
        model = f"{family}_p0_224" if tiny else f"{family}_t_224"
        sizes = ["2", "--img-size", "64"] if tiny else ["256"]
        options = [*HALF, "--channels-last", "--train", *(_rounds(tiny) if tiny else [])]
        arguments = ["benchmarks.parts", "--model", model, "--batch-size", *sizes, *options]
        yield Step(f"parts_{family}_t", arguments)
    yield _models("models_t_float32", [*MODELS, "fused:wsfvit_t_224"], 64, tiny)
    for size in ("p0", "n", "b"):
        names = [f"wsfvit_{size}_224", f"wsfvit_dwt_{size}_224"]
        yield _models(f"models_{size}_train", names, 64, tiny, [*HALF, "--train"])
        yield _models(f"models_{size}_train_compiled", names, 64, tiny, [*HALF, "--train", "--compile"])
    small = [*MODELS, "wsfvit_p0_224"]
    yield _models("latency_batch_1", small, 1, tiny, HALF)
    yield _models("latency_batch_1_graphs", small, 1, tiny, [*HALF, "--compile", "reduce-overhead"])
    for batch in (4, 16, 64):
        yield _models(f"scaling_batch_{batch}", ["wsfvit_t_224", "maxvit_tiny_tf_224"], batch, tiny, HALF)
    for pixels in (384, 512, 768, 1024):
        yield _models(f"scaling_size_{pixels}", ["wsfvit_t_224", "wsfvit_dwt_t_224"], 16, tiny, HALF, img_size=pixels)
    if device.startswith("cuda") and (sanitizer := shutil.which("compute-sanitizer")):
        for tool in ("memcheck", "racecheck"):
            chosen = ["tests/wavelets/test_triton.py", "-k", "reference or factor or beside"]
            arguments = ["pytest", "--device", "cuda", *chosen]
            yield Step(f"sanitizer_{tool}", arguments, required, (sanitizer, "--tool", tool, "--error-exitcode", "1"))


def _pytest() -> list[str]:
    """With several processes where the plugin for it is there: most of the time goes into compiling kernels."""
    workers = ["-n", str(min(os.cpu_count() or 1, MOST_WORKERS))] if importlib.util.find_spec("xdist") else []
    return ["pytest", *workers]


def _wavelets(device: str, tiny: bool) -> Iterator[Step]:
    """The transforms on tensors several times a GPU's cache, and on small ones without the host's share."""
    on_gpu = device.startswith("cuda")
    large, small = (["1x2x8x8"], ["1x1x4x4"]) if tiny else (["512x3x224x224", "512x64x56x56"], ["1x64x56x56"])
    graphs = ["--cuda-graph"] if on_gpu else []
    for backend in ("triton", "reference") if on_gpu else ("reference",):
        for direction in ([], ["--backward"]):
            for name, shapes, options in (
                ("float32", large, []),
                ("bfloat16", large, ["--dtype", "bfloat16"]),
                ("bfloat16_channels_last", large, ["--dtype", "bfloat16", "--channels-last"]),
                ("small", small, graphs),
            ):
                full_name = "_".join(["wavelets", backend, name, *(each.strip("-") for each in direction)])
                arguments = ["benchmarks.wavelets", "--shapes", *shapes, *options, *direction, *_rounds(tiny)]
                yield Step(full_name, arguments, {"WSFVIT_WAVELET_BACKEND": backend})


def _models(
    name: str, models: list[str], batch: int, tiny: bool, options: list[str] | None = None, img_size: int = 224
) -> Step:
    models, options = TINY_MODELS if tiny else models, options or []
    sizes = ["2", "--img-size", "32"] if tiny else [str(batch), "--img-size", str(img_size)]

    def arguments(names: list[str], rounds: list[str]) -> list[str]:
        common = ["--batch-size", *sizes, "--channels-last", *options]
        return ["benchmarks.models", "--models", *names, *common, *rounds]

    # A baseline comes with its model, which finds it in the cache then.
    alone = [*(PREFIX + each for each in models if each in BASELINE_CFGS), *models]
    ahead = [arguments([each], _rounds(True)) for each in alone] if "--compile" in options and not tiny else []
    return Step(name, arguments(models, _rounds(tiny)), ahead=tuple(ahead))


def _rounds(tiny: bool) -> list[str]:
    return ["--warmup", "1", "--repeats", "1"] if tiny else ["--warmup", "5", "--repeats", "30"]


def run_step(step: Step, device: str, out: Path, seconds: float) -> str | None:
    """Runs one step and puts its results at ``out``.

    Returns:
        None, or what went wrong; then nothing is at ``out``, and what the program said is beside it in a .log.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part, log = out.with_suffix(".part"), out.with_suffix(".log")
    results = ["--device", device, "--out", str(part)] if step.measures else []
    end = time.monotonic() + seconds
    _compile_ahead(step, device, end)
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                [*step.under, sys.executable, "-m", *step.arguments, *results],
                env=os.environ | step.variables,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=end - time.monotonic(),
            )
        except subprocess.TimeoutExpired:
            return f"not done within {seconds:.0f} s, see {log}"
    if done.returncode:
        return f"exit status {done.returncode}, see {log}"
    if not step.measures:
        last = log.read_text().strip().splitlines()[-1]
        write_results(part, {"environment": environment(), "arguments": step.arguments, "outcome": last})
    part.replace(out)
    return None


def _compile_ahead(step: Step, device: str, end: float) -> None:
    """Fills the compiler's cache; what fails here is told by the step itself, which compiles what is missing."""

    def run(arguments: list[str]) -> None:
        command = [sys.executable, "-m", *arguments, "--device", device]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command,
                env=os.environ | step.variables,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=end - time.monotonic(),
            )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(run, step.ahead))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("gpu", __doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="FOLDER", help="default: results/gpu")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="NAME", help="steps whose names begin like this (default: all)"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time after which it stops")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to try every step")
    parser.add_argument("--list", action="store_true", help="show the steps and which of them are done")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    steps = [step for step in plan(args.device, args.tiny) if step.name.startswith(tuple(args.only))]
    if not steps:
        raise UserError(f"no step begins with {' or '.join(args.only)}; --list shows all")
    end = time.monotonic() + 60 * args.minutes
    failed, missing = [], []
    for step in steps:
        out = args.out / f"{step.name}.json"
        if args.list or out.exists():
            print(f"{'done' if out.exists() else 'open':8}{step.name}: {' '.join(step.arguments)}")
            continue
        if time.monotonic() >= end:
            missing.append(step.name)
            continue
        problem = run_step(step, args.device, out, max(end - time.monotonic(), 1))
        print(f"{'failed' if problem else 'done':8}{step.name}{f': {problem}' if problem else ''}", flush=True)
        failed += [step.name] if problem else []
    if missing:
        print(f"{args.minutes:g} minutes are over; the same command goes on with: {' '.join(missing)}")
    if failed:
        raise SystemExit(f"failed: {' '.join(failed)}")


if __name__ == "__main__":
    run_main(main)
