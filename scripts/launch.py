"""torchrun with one-line errors: checks the command first, and reports a mistake once, without a traceback.

python scripts/launch.py [-m torch.distributed.run] --nproc-per-node 4 train.py DATA -c CONFIG
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

import wsfvit_cli
from wsfvit.cli.run import parse_with_config
from wsfvit.factory.recipe import resolve_grad_accum_steps
from wsfvit.train.run_dir import PLACES, read_arguments
from wsfvit.train.signals import STOPPED_EXIT_CODE
from wsfvit.utils.errors import UserError, run_main

# Seconds that processes get to finish a step and save it after a signal; torchrun alone gives 30.
GRACE_SECONDS = 300


def main() -> None:
    """Check the command, start its processes, and end as the first of them that failed."""
    argv = sys.argv[1:]
    if argv[:2] == ["-m", "torch.distributed.run"]:
        argv = argv[2:]
    launched = torchrun.parse_args(argv)
    check(launched)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun sets it, which warns about it
    logger = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    logger.setLevel(logging.CRITICAL)  # its other messages repeat the exit codes
    if hasattr(launched, "signals_to_handle"):
        launched.signals_to_handle += ",SIGUSR1"
    codes = wait_for_stops()
    try:
        torchrun.run(launched)
    except ChildFailedError as err:
        code = err.get_first_failure()[1].exitcode
        if code not in (2, STOPPED_EXIT_CODE):
            raise
        sys.exit(code)
    except SignalException as err:
        agreed = codes[0] if len(set(codes)) == 1 else None
        sys.exit(agreed if agreed in (0, STOPPED_EXIT_CODE) else 128 + err.sigval)


def wait_for_stops() -> list[int]:
    """After a signal, give the processes ``GRACE_SECONDS`` to save, and ignore repeated ones.

    Returns a list that then receives their exit codes.
    """
    codes: list[int] = []
    close = SubprocessContext.close

    def patient_close(self: Any, death_sig: Any = None, timeout: int = 30) -> None:
        if isinstance(sys.exc_info()[1], SignalException):
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            timeout = GRACE_SECONDS
        close(self, death_sig, timeout)
        codes[:] = [handler.proc.returncode for handler in self.subprocess_handlers.values()]

    SubprocessContext.close = patient_close
    return codes


def check(launched: Any) -> None:
    """Check arguments, paths and the number of GPUs of a training command of this project.

    Raises:
        UserError: something is missing or does not fit.
    """
    name, rest = launched.training_script, list(launched.training_script_args)
    if not Path(name).is_file() and not launched.module:
        raise UserError(f"'{name}' does not exist: name train.py, or -m and a module")
    if launched.module and name.partition(".")[0] == "wsfvit":
        words = [*name.split(".")[1:], *rest]
        group = words.pop(0) if words and words[0] in wsfvit_cli.GROUPS else ""
        name, *rest = words or [""]
    elif Path(name).name == "train.py":
        group, name = "", "train"
    if name != "train":
        return
    parser = wsfvit_cli._load(wsfvit_cli.GROUPS[group][name][1])()
    wsfvit_cli.add_import(parser)
    args = parse_with_config(parser, rest, read_arguments)
    for key in sorted(PLACES - {"config", "output"}) if not getattr(args, "dataset", "") else ():
        value = getattr(args, key, None)
        if value and value != parser.get_default(key) and not Path(value).exists():
            raise UserError(f"the data '{value}' ({key}) does not exist")
    processes, gpus = torchrun.determine_local_world_size(launched.nproc_per_node), torch.cuda.device_count()
    if str(args.device or "cuda").startswith("cuda") and processes > gpus:
        advice = f"start {gpus} processes" if gpus else "pass --device cpu to train on CPUs"
        raise UserError(f"{processes} processes need {processes} GPUs, and this machine has {gpus or 'none'}: {advice}")
    resolve_grad_accum_steps(args, processes * int(launched.nnodes.rpartition(":")[2]))


if __name__ == "__main__":
    run_main(main)
