"""Test and measure on a GPU: kernels, Haar transforms, models, attention, what each special form gives, kills.

    python -m benchmarks.gpu                    # again, until nothing is left
    python -m benchmarks.gpu --only latency     # steps whose names begin with this
    python -m benchmarks.gpu --tiny --device cpu --out output/tiny      # does every step start?

Each step is pytest or a benchmark program in a process of its own, and leaves one JSON file in --out. A step whose
file exists is not run again, so the command can be repeated after any interruption. It stops by itself after --minutes;
a step that did not end in time starts again with the compiler's cache filled.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.common import build_parser, environment, write_results
from benchmarks.models import FORMS
from wsfvit.utils.errors import UserError, run_main

# Two or three at a time: a step that compiles more would not end within one call.
GROUPS = {
    "wsfvit": ["wsfvit_t_224", "convnext_tiny"],
    "dwt": ["wsfvit_dwt_t_224", "maxvit_tiny_rw_224"],
    "mixers": ["caformer_s18", "efficientvit_l1", "davit_tiny"],
}
TINY_MODELS = ["wsfvit_p0_224", "fused:wsfvit_p0_224", "resnet10t"]
# A step has to end within one call, so what takes long is apart.
TESTS = {
    "tests_kernels": ["tests/wavelets/test_triton.py", "tests/wavelets/test_checked.py"],
    "tests_models": ["tests/models"],
    "tests_transforms": [
        "tests/wavelets",
        *(f"--ignore=tests/wavelets/test_{name}.py" for name in ("triton", "checked")),
    ],
}
MAX_WORKERS = 8
HALF = ["--dtype", "bfloat16", "--amp"]
TRAIN = [*HALF, "--train"]
COMPILED = [*TRAIN, "--compile"]
# Inductor without this project's options.
LIMITS = ("realize_opcount_threshold=30", "realize_reads_threshold=4", "realize_acc_reads_threshold=8")
# Least milliseconds of an H200 for 256 images in inference: results/history/traffic.json, counted in generated code.
BOUNDS = "no less than 16.3 ms, fused 10.6, baseline 23.4, convnext_tiny 6.8; half of convnext_tiny's images/s"
EXPECTED = {
    "models_wsfvit_compiled": f"compiled inference at 256 images: {BOUNDS} (fit over timm's table)",
    "wavelets_triton": "near the copy: each element is read and written once; at least as fast as inductor's form",
    "wavelets_reference": "a quarter of the copy, by its passes over memory",
    "fused_triton": "faster than fused_reference, 10.5 instead of 10.6 ms at least, or the stem's kernel is deleted",
    "attention": "efficient attention as fast as the default, or the default is replaced",
    "without": "slower than models_wsfvit_compiled; what is not is deleted",
    "kills": "no difference",
}


@dataclass(frozen=True)
class Step:
    """A program to run.

    Attributes:
        name: Name of its results file.
        arguments: What follows ``python -m``, without --device and --out.
        variables: Added to its environment.
        under: Command that runs Python, such as a memory checker.
    """

    name: str
    arguments: list[str]
    variables: dict[str, str] = field(default_factory=dict)
    under: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What the figures should be, so that a surprise is seen."""
        return next((text for name, text in EXPECTED.items() if self.name.startswith(name)), "")

    @property
    def writes_results(self) -> bool:
        """Whether the program writes the results file itself, which pytest does not."""
        return self.arguments[0] != "pytest"


def plan(device: str, tiny: bool) -> Iterator[Step]:
    """All steps, the most wanted first; ``tiny``: the same ones on the smallest models and images."""
    on_gpu = device.startswith("cuda")
    required = {"WSFVIT_REQUIRE_GPU": "1"} if on_gpu else {}
    # Most of the time goes into compiling kernels: several processes, where the plugin for it is installed.
    workers = ["-n", str(min(os.cpu_count() or 1, MAX_WORKERS))] if importlib.util.find_spec("xdist") else []
    for name, paths in TESTS.items():
        chosen = ["tests/wavelets/test_eager.py"] if tiny else paths
        yield Step(name, ["pytest", *workers, "--device", device.partition(":")[0], *chosen], required)
    yield from _wavelets(on_gpu, tiny)
    for group, names in GROUPS.items():
        yield _models(f"models_{group}", names, 256, tiny, TRAIN)
        yield _models(f"models_{group}_compiled", names, 256, tiny, COMPILED)
    for backend in _backends(on_gpu):
        fused = _models(f"fused_{backend}", ["fused:wsfvit_t_224"], 256, tiny, [*HALF, "--compile"])
        yield replace(fused, variables={"WSFVIT_WAVELET_BACKEND": backend})
    for attention in ("default", "efficient"):
        yield _models(f"attention_{attention}", ["wsfvit_t_224"], 256, tiny, [*TRAIN, "--attention", attention])
    for form in FORMS:
        yield _models(f"without_{form}", ["wsfvit_t_224"], 256, tiny, [*COMPILED, "--without", form])
    limits = [*COMPILED, "--compile-options", *LIMITS]
    yield _models("without_training_options", ["wsfvit_t_224"], 256, tiny, limits)
    training = ["--dataset", "synthetic", "--model", "wsfvit_p0_224", "--img-size", "64", "--num-classes", "4"]
    training += ["--epochs", "2" if tiny else "6", "-b", "16", "--deterministic", "--device", device]
    yield Step("kills", ["tools.kill_resume", "--kills", "2" if tiny else "60", "--", *training])
    yield _models("latency_batch_1", ["wsfvit_t_224", "wsfvit_p0_224", "convnext_tiny"], 1, tiny, HALF)
    for size in ("p0", "b"):
        yield _models(f"models_{size}", [f"wsfvit_{size}_224", f"wsfvit_dwt_{size}_224"], 64, tiny, TRAIN)
    if on_gpu and (sanitizer := shutil.which("compute-sanitizer")):
        for tool in ("memcheck", "racecheck"):
            tests = ["tests/wavelets/test_triton.py", "-k", "reference or factor or beside"]
            under = (sanitizer, "--tool", tool, "--error-exitcode", "1")
            yield Step(f"sanitizer_{tool}", ["pytest", "--device", "cuda", *tests], required, under)


def _backends(on_gpu: bool) -> tuple[str, ...]:
    return ("triton", "reference") if on_gpu else ("reference",)


def _wavelets(on_gpu: bool, tiny: bool) -> Iterator[Step]:
    """The transforms on tensors several times a GPU's cache, and on small ones without the host's share."""
    large, small = (["1x2x8x8"], ["1x1x4x4"]) if tiny else (["512x3x224x224", "512x64x56x56"], ["1x64x56x56"])
    cases = {
        "float32": [*large],
        "bfloat16": [*large, "--dtype", "bfloat16"],
        "bfloat16_channels_last": [*large, "--dtype", "bfloat16", "--channels-last"],
        "small": [*small, *(["--cuda-graph"] if on_gpu else [])],
    }
    for backend in _backends(on_gpu):
        for end, direction in (("", []), ("_backward", ["--backward"])):
            for name, options in cases.items():
                arguments = ["benchmarks.wavelets", "--shapes", *options, *direction, *_rounds(tiny)]
                yield Step(f"wavelets_{backend}_{name}{end}", arguments, {"WSFVIT_WAVELET_BACKEND": backend})


def _models(
    name: str, models: list[str], batch: int, tiny: bool, options: list[str] | None = None, img_size: int = 224
) -> Step:
    sizes = ["2", "--img-size", "32"] if tiny else [str(batch), "--img-size", str(img_size)]
    arguments = ["--models", *(TINY_MODELS if tiny else models), "--batch-size", *sizes, "--channels-last"]
    return Step(name, ["benchmarks.models", *arguments, *(options or []), *_rounds(tiny)])


def _rounds(tiny: bool) -> list[str]:
    return ["--warmup", "1", "--repeats", "1"] if tiny else ["--warmup", "5", "--repeats", "30"]


def run_step(step: Step, device: str, out: Path, seconds: float) -> str | None:
    """Run one step and put its results at ``out``.

    Returns:
        None, or the failure; then nothing is at ``out``, and the program's output is beside it in a .log.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part, log = out.with_suffix(".part"), out.with_suffix(".log")
    results = ["--out", str(part)] if step.writes_results else []
    if step.arguments[0].startswith("benchmarks."):
        results += ["--device", device]
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                [*step.under, sys.executable, "-m", step.arguments[0], *results, *step.arguments[1:]],
                env=os.environ | step.variables,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return f"not done within {seconds:.0f} s, see {log}"
    if done.returncode:
        return f"exit status {done.returncode}, see {log}"
    if not step.writes_results:
        last = log.read_text().strip().splitlines()[-1]
        write_results(part, {"environment": environment(), "arguments": step.arguments, "outcome": last})
    part.replace(out)
    return None


def _expected(step: Step) -> str:
    return f"\n        expected: {step.expected}" if step.expected else ""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("benchmarks.gpu", __doc__)
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
            print(f"{'done' if out.exists() else 'open':8}{step.name}: {' '.join(step.arguments)}{_expected(step)}")
            continue
        if time.monotonic() >= end:
            missing.append(step.name)
            continue
        problem = run_step(step, args.device, out, max(end - time.monotonic(), 1))
        outcome = f": {problem}" if problem else _expected(step)
        print(f"{'failed' if problem else 'done':8}{step.name}{outcome}", flush=True)
        failed += [step.name] if problem else []
    if missing:
        print(f"{args.minutes:g} minutes are over; the same command continues with: {' '.join(missing)}")
    if failed:
        raise SystemExit(f"failed: {' '.join(failed)}")


if __name__ == "__main__":
    run_main(main)
