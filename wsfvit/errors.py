"""Errors that a user can cause, and how a command ends on one."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in what the user passed in (a name, a value, a file); its text is one line that says what to do."""


def run_main(main: Callable[[], object]) -> None:
    """Runs a command and ends the process: exit code 0, or 2 with one line on stderr after a ``UserError``.

    Every other exception is a defect of this code and keeps its traceback.
    """
    try:
        main()
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
