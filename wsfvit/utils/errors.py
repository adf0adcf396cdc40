"""Errors that a user can cause, and how a command ends on one."""

import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake in what the user passed in (a name, a value, a file); its text is one line that says what to do."""


def first_line(err: BaseException) -> str:
    """The first line of an exception's text that is not empty."""
    return next((line for line in str(err).splitlines() if line.strip()), "no reason given").strip()


def did_you_mean(word: object, known: Iterable[object], n: int = 1, otherwise: str = "") -> str:
    """ ", did you mean 'x'?" with up to ``n`` names that are close to ``word``; ``otherwise`` if there are none."""
    near = difflib.get_close_matches(str(word), map(str, known), n=n)
    return f", did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def run_main(main: Callable[[], object]) -> None:
    """Runs a command and ends the process: exit code 0, or 2 with one line on stderr after a ``UserError``.

    Ctrl-C, and a reader of the output that has gone (``| head``), end it as they end other programs, with 128 plus the
    number of the signal. Every other exception is a defect of this code and keeps its traceback; under torchrun, the
    launcher repeats the traceback of the process that failed first.
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
            # This process lost another one. The launcher dates failures in whole seconds and takes the earliest for the
            # cause: let that be the one of the process that is gone.
            time.sleep(2)
        raise


def _run(main: Callable[[], object]) -> None:
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if _stdout_is_read():  # then it was a pipe of this code's own
            raise
        # What is still buffered has nowhere to go, and Python would complain about that on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _stdout_is_read() -> bool:
    try:
        print(flush=True)
    except BrokenPipeError:
        return False
    return True
