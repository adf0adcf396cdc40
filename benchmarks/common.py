"""Options, environment and output that the benchmark programs share."""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wsfvit.cli.common import HelpFormatter, Parser, fraction
from wsfvit.utils.distributed import resolve_device
from wsfvit.utils.files import make_folder, write_text_atomic
from wsfvit.wavelets.filterbank import filter_bank

ROOT = Path(__file__).parents[1]
# Beginnings of the environment variables that change figures: this project's, and those of the allocators.
VARIABLES = ("WSFVIT_", "MALLOC_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE", "LD_PRELOAD")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def parse_shape(text: str) -> tuple[int, ...]:
    """Read BxCxHxW."""
    parts = text.split("x")
    if len(parts) != 4 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"a shape is BxCxHxW, such as 4x3x224x224, got {text!r}")
    return tuple(int(part) for part in parts)


def parse_wavelet(text: str) -> str:
    """Read the name of a discrete wavelet of PyWavelets."""
    try:
        filter_bank(text)
    except (ImportError, ValueError) as err:
        raise argparse.ArgumentTypeError(str(err)) from err
    return text


class ProgramHelp(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help of a program: its docstring unchanged, and the default of each flag."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = "default:" in (action.help or "")  # written out where the value itself would not read well
        return action.help if has_default else super()._get_help_string(action)


def build_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Parser of ``python -m MODULE``; ``description`` is the docstring of that module."""
    prog = f"python -m {module}"
    return Parser(prog=prog, description=description, allow_abbrev=False, formatter_class=ProgramHelp)


def add_out(parser: argparse._ActionsContainer) -> None:
    """Add --out, for `write_run`."""
    parser.add_argument("--out", metavar="FILE", help="write the run as JSON")


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """Add --device and --threads, for `set_up_device`."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")


def build_timing_parser(module: str, description: str) -> argparse.ArgumentParser:
    """`build_parser` with --device, --threads, --warmup, --repeats, --seed and --out."""
    parser = build_parser(module, description)
    timing = parser.add_argument_group("timing")
    add_device_options(timing)
    timing.add_argument("--warmup", type=int, default=3, help="untimed calls of each candidate")
    timing.add_argument("--repeats", type=int, default=20, help="timed rounds")
    timing.add_argument("--seed", type=int, default=0, help="seed of the random inputs and weights")
    add_out(timing)
    return parser


def add_precision_options(parser: argparse.ArgumentParser) -> None:
    """Add --dtype, --amp, --channels-last and --tf32; see `check_precision`."""
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights, or of autocast")
    parser.add_argument("--amp", action="store_true", help="float32 weights and input under autocast to --dtype")
    parser.add_argument("--channels-last", action="store_true", help="memory format of weights and input")
    parser.add_argument("--tf32", action="store_true", help="allow TF32 on CUDA while timing")


def check_precision(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse --amp without a half precision."""
    if args.amp and args.dtype not in ("bfloat16", "float16"):
        parser.error("--amp needs --dtype bfloat16 or float16")


def add_compile_options(parser: argparse._ActionsContainer) -> None:
    """Add --compile-options and --memory-budget, for `wsfvit.utils.compiling`."""
    text = "settings of inductor, as --torchcompile-options of train.py"
    parser.add_argument("--compile-options", nargs="+", default=[], metavar="NAME=VALUE", help=text)
    text = "as --torchcompile-memory-budget of train.py (default: 1)"
    parser.add_argument("--memory-budget", type=fraction, metavar="SHARE", help=text)


def set_up_device(device: str, threads: int | None, tf32: bool = False) -> torch.device:
    """Fix what would otherwise differ between runs: CPU threads, and for CUDA precision of float32 and current card.

    Raises:
        UserError: the device does not exist here.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    return resolve_device(device)


def environment() -> dict[str, Any]:
    """Command, commit, versions, hardware, threads, load and date: what a reader needs to judge a figure."""
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
        "load_average": [round(value, 1) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "card": card,
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith(VARIABLES)},
    }


def _git_commit() -> str | None:
    """The commit of this checkout, None outside one; "-dirty" is appended if files that are not results differ."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
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


def write_run(args: argparse.Namespace, **content: Any) -> None:
    """Write the environment, the settings and ``content`` to ``--out``, if it was given."""
    if args.out:
        write_results(args.out, {"environment": environment(), "settings": vars(args), **content})
        print(f"\nwrote {args.out}")


def write_results(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write one run as indented JSON, creating the folder.

    Raises:
        UserError: the operating system refused.
    """
    make_folder(Path(path).parent)
    write_text_atomic(path, json.dumps(payload, indent=2) + "\n")
