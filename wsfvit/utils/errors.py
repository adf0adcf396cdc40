"""User errors, and how a command ends."""

import difflib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Invalid user input (a name, a value, a file); the message is one line that says what to do."""


def first_line(err: BaseException) -> str:
    """The first non-empty line of an exception's message."""
    return next((line for line in str(err).splitlines() if line.strip()), "no reason given").strip()


def is_out_of_memory(err: BaseException | None) -> bool:
    """Whether Python or torch could not allocate memory."""
    is_torchs = isinstance(err, RuntimeError) and "memory" in str(err) and "allocate" in str(err)
    return is_torchs or isinstance(err, MemoryError)


def did_you_mean(word: object, known: Iterable[object], n: int = 1, otherwise: str = "") -> str:
    """ ", did you mean 'x'?" with up to ``n`` names that are close to ``word``; ``otherwise`` if there are none."""
    near = difflib.get_close_matches(str(word), map(str, known), n=n)
    return f", did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def import_optional(module: str, otherwise: str) -> Any:
    """Import an optional package, or raise a ``UserError`` whose message ``otherwise`` says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise UserError(otherwise) from err


def run_main(main: Callable[[], object]) -> None:
    """Run a command; after a ``UserError`` or the end of a dataloader worker, print one line and exit with code 2.

    Ctrl-C and a closed output pipe (``| head``) end it with 128 plus the number of the signal. Every other exception is
    a defect and keeps its traceback; under torchrun, the launcher repeats the traceback of the process that failed
    first.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _run(main)
        return
    from torch.distributed.elastic.multiprocessing.errors import record

    record(_run_beside_others)(main)


def _run_beside_others(main: Callable[[], object]) -> None:
    try:
        _run(main)
    except RuntimeError as err:
        if "by peer" in str(err) or type(err).__name__.startswith("Dist"):  # of gloo; of torch.distributed
            # Another process died. The launcher dates failures in whole seconds and reports the earliest as the cause:
            # let that be the failure of the process that died.
            time.sleep(2)
        raise


def _run(main: Callable[[], object]) -> None:
    try:
        try:
            main()
        except RuntimeError as err:  # torch raises it wherever the main process is when a dataloader worker ends
            if not str(err).startswith("DataLoader worker (pid"):
                raise
            raise UserError(f"{first_line(err).rstrip('.')} (if memory ran out, pass fewer --workers)") from err
        finally:
            sys.stdout.flush()
    except (UserError, MemoryError, RuntimeError) as err:
        if not isinstance(err, UserError) and not is_out_of_memory(err):
            raise
        text = str(err) if isinstance(err, UserError) else f"out of memory: {first_line(err)}"
        if _reports_first():
            print(f"error: {' '.join(text.splitlines())}", file=sys.stderr)  # one line, whatever a file's value holds
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:
            # Otherwise Python would complain at exit about what is still buffered.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        raise  # the broken pipe was another one


def _reports_first() -> bool:
    """Whether no other process of this machine has reported an error: all of them usually find the same one."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/RANK/error.json, a folder of this attempt
    if not file:
        return True
    try:
        (Path(file).parents[1] / "user-error").touch(exist_ok=False)
    except OSError as err:
        return not isinstance(err, FileExistsError)
    return True
