"""What the measuring programs share: options, interleaved timing, a run's environment, JSON and Markdown output."""

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wsfvit.cli.common import HelpFormatter, Parser, fraction
from wsfvit.utils.distributed import resolve_device
from wsfvit.utils.files import make_folder, write_text_atomic
from wsfvit.wavelets.filterbank import filter_bank

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# Short functions are called several times per sample, so that the clock and the launch of the first call do not show.
MIN_SAMPLE_SECONDS = 2e-3
MAX_CALLS_PER_SAMPLE = 1000


@dataclass(frozen=True)
class Timing:
    """Seconds per call (median and the 20 % and 80 % quantiles) and, on CUDA, bytes allocated on top at the peak."""

    median: float
    q20: float
    q80: float
    repeats: int
    calls_per_sample: int
    peak_memory: int | None = None


def parse_shape(text: str) -> tuple[int, ...]:
    """Reads BxCxHxW."""
    parts = text.split("x")
    if len(parts) != 4 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"a shape is BxCxHxW, such as 4x3x224x224, got {text!r}")
    return tuple(int(part) for part in parts)


def parse_wavelet(text: str) -> str:
    """Reads the name of a discrete wavelet of PyWavelets."""
    try:
        filter_bank(text)
    except (ImportError, ValueError) as err:
        raise argparse.ArgumentTypeError(str(err)) from err
    return text


class ProgramHelp(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help of a measuring program: its docstring as it is written, and the default of each flag."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_it = "default:" in (action.help or "")  # of what no value shows well: lists, paths, what depends
        return action.help if says_it else super()._get_help_string(action)


def build_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of ``python -m benchmarks.NAME``; ``description`` is that module's docstring."""
    prog = f"python -m benchmarks.{name}"
    return Parser(prog=prog, description=description, allow_abbrev=False, formatter_class=ProgramHelp)


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """Adds what `set_up_device` takes: --device and --threads."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")


def add_compile_options(parser: argparse._ActionsContainer) -> None:
    """Adds --compile-options and --memory-budget, for `wsfvit.utils.compiling`."""
    said = "settings of inductor, as --torchcompile-options of train.py"
    parser.add_argument("--compile-options", nargs="+", default=[], metavar="NAME=VALUE", help=said)
    said = "as --torchcompile-memory-budget of train.py (default: 1)"
    parser.add_argument("--memory-budget", type=fraction, metavar="SHARE", help=said)


def build_timing_parser(name: str, description: str) -> argparse.ArgumentParser:
    """`build_parser` with what every timing program takes: --device, --threads, --warmup, --repeats, --seed, --out."""
    parser = build_parser(name, description)
    timing = parser.add_argument_group("timing")
    add_device_options(timing)
    timing.add_argument("--warmup", type=int, default=3, help="untimed calls of each candidate")
    timing.add_argument("--repeats", type=int, default=20, help="timed rounds")
    timing.add_argument("--seed", type=int, default=0, help="of the random inputs and weights")
    timing.add_argument("--out", metavar="FILE", help="write the run as JSON")
    return parser


def write_run(args: argparse.Namespace, **content: Any) -> None:
    """Writes the environment, the settings and ``content`` to ``--out``, if it was given."""
    if args.out:
        write_results(args.out, {"environment": environment(), "settings": vars(args), **content})
        print(f"\nwrote {args.out}")


def report_fuzzing(args: argparse.Namespace, cases: Sequence[Mapping[str, str]], bad: Sequence[str]) -> None:
    """Prints how many of ``cases`` there are of each kind, writes that to ``--out``, and exits with 1 if any is bad.

    Args:
        args: The program's arguments.
        cases: What identifies the kind of each case, e.g. its format and outcome.
        bad: A line about each case that did not end as it should.
    """
    counts = Counter(tuple(case.items()) for case in cases)
    results = [dict(kind) | {"files": files} for kind, files in sorted(counts.items())]
    print(markdown_table(list(results[0]), [[str(value) for value in row.values()] for row in results]))
    print(*bad, f"{len(cases)} files, {len(bad)} of them did not end as they should", sep="\n")
    write_run(args, bad=len(bad), results=results)
    if bad:
        raise SystemExit(1)


def forward_step(function: Callable[[Any], Any], x: torch.Tensor) -> Any:
    """One call without gradients."""
    with torch.no_grad():
        return function(x)


def forward_backward_step(function: Callable[[Any], Any], leaves: Sequence[torch.Tensor], grads: Any) -> Any:
    """One call on the first of ``leaves`` and the gradients of all of them for the output gradients ``grads``."""
    return torch.autograd.grad(function(leaves[0]), leaves, grads)


def measure(fn: Callable[[], Any], warmup: int = 3, repeats: int = 20, device: torch.device | str = "cpu") -> Timing:
    """Time one function; see `measure_together`."""
    return measure_together({"": fn}, warmup, repeats, device)[""]


def measure_together(
    candidates: Mapping[str, Callable[[], Any]],
    warmup: int = 3,
    repeats: int = 20,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time several functions in turns, so that noise and clock changes hit all of them alike.

    Each round calls every candidate once and starts one candidate later than the round before: none profits from always
    running after a light neighbour. `clock` tells seconds; `time.process_time` does not count what other programs take.
    """
    device = torch.device(device)
    calls: dict[str, int] = {}
    peaks: dict[str, int | None] = {}
    for name, fn in candidates.items():
        for _ in range(max(warmup, 1)):
            fn()
        once = _sample(fn, 1, device, clock)
        calls[name] = min(max(math.ceil(MIN_SAMPLE_SECONDS / max(once, 1e-9)), 1), MAX_CALLS_PER_SAMPLE)
        peaks[name] = _peak_memory(fn, device)

    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repeats):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(_sample(candidates[name], calls[name], device, clock))
    return {name: _summarise(samples[name], calls[name], peaks[name]) for name in names}


def _sample(fn: Callable[[], Any], calls: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds per call over `calls` calls in a row; the device is idle before and after."""
    _synchronize(device)
    start = clock()
    for _ in range(calls):
        fn()
    _synchronize(device)
    return (clock() - start) / calls


def capture(fn: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """A function that replays what ``fn`` does on a GPU as one CUDA graph, without the host's share.

    Raises:
        RuntimeError: ``fn`` does what a graph cannot hold.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # memory and libraries are set up outside the graph
        for _ in range(3):
            fn()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph.replay


def host_seconds(fn: Callable[[], Any], device: torch.device, calls: int = 100) -> float:
    """Seconds that the host takes to start one call on a GPU, which is idle at first; for short functions only."""
    fn()
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    taken = (time.perf_counter() - start) / calls
    _synchronize(device)
    return taken


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(fn: Callable[[], Any], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    fn()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _summarise(samples: list[float], calls: int, peak: int | None) -> Timing:
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    q20, median, q80 = torch.tensor(samples, dtype=torch.float64).quantile(levels).tolist()
    return Timing(median, q20, q80, len(samples), calls, peak)


def set_up_device(device: str, threads: int | None, tf32: bool = False) -> torch.device:
    """Fix what would otherwise differ between runs: CPU threads, and for CUDA precision of float32 and current card.

    Raises:
        UserError: no such device here.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    return resolve_device(device)


def environment() -> dict[str, Any]:
    """Everything a reader needs to judge a figure: command, commit, versions, hardware, threads, date."""
    import timm

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "commit": _git_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if card else None,
        "timm": timm.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "card": card,
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith("WSFVIT_")},
    }


def _git_commit() -> str | None:
    """The commit of this checkout, None outside one; "-dirty" is appended if files that are not results differ."""
    here = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        return "" if done.returncode else done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    except FileNotFoundError:
        return None
    return f"{commit}{'-dirty' if changed else ''}" if commit else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_results(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write one run as indented JSON, creating the folder.

    Raises:
        UserError: the operating system refused.
    """
    make_folder(Path(path).parent)
    write_text_atomic(path, json.dumps(payload, indent=2) + "\n")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first one to the left and the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def format_timing(timing: Timing) -> tuple[str, str, str]:
    """Median and quantile range in milliseconds, and peak memory in MiB, as text."""
    memory = "" if timing.peak_memory is None else f"{timing.peak_memory / 2**20:.1f}"
    return f"{timing.median * 1e3:.4g}", f"{timing.q20 * 1e3:.4g} to {timing.q80 * 1e3:.4g}", memory
