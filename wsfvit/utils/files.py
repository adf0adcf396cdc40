"""Atomic file writes, locks and output folders."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from wsfvit.utils.errors import UserError


def write_atomic(
    path: str | os.PathLike[str], write: Callable[[IO[bytes]], object], publish: Callable[[Path], object] | None = None
) -> None:
    """Write a file through a temporary one beside it; if anything fails, the old file is unchanged.

    Args:
        path: The file to write.
        write: Receives the open binary file and writes the content.
        publish: Receives the path of the complete temporary file and moves it to ``path``, adding links if needed
            (default: only move it).

    Raises:
        UserError: The operating system refused (no space, no permission, no such folder).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if publish is None:
            os.replace(temporary, path)
        else:
            publish(temporary)
    except OSError as err:
        raise UserError(f"cannot write '{path}': {err.strerror or err}") from err
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # only there can a folder be opened, which makes the rename durable
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON text of ``content``; raise a ``UserError`` for NaN or infinity, which JSON has no form for."""
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError as err:
        raise UserError(f"a result is NaN or infinite, which is not written: {err}") from err


@contextmanager
def held(lock: Path, patience: float = 0) -> Iterator[bool]:
    """Hold an exclusive lock until the block or the process ends; yields whether it was acquired.

    ``lock`` is a file for this purpose, created if it is missing (else a ``UserError``), and ``patience`` the seconds
    to wait for another process to release it. Without lock support in the operating or file system, locking is a no-op
    that succeeds.
    """
    try:
        file = open(lock, "a")
    except OSError as err:
        raise UserError(f"cannot write '{lock}': {err.strerror or err}") from err
    with file:
        until = time.monotonic() + patience
        while not (acquired := _lock(file)) and time.monotonic() < until:
            time.sleep(0.2)
        yield acquired


def _lock(file: IO[str]) -> bool:
    try:
        import fcntl  # of POSIX systems
    except ImportError:
        return True
    try:
        # Not flock: forked dataloader workers share its lock and may outlive a killed process by seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        return err.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def make_folder(folder: Path) -> None:
    """Create a folder and its parents if they are missing, or raise a ``UserError``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError(f"the folder '{folder}' cannot be made: {err.strerror or err}") from err


def check_can_be_made(folder: Path) -> None:
    """Raise a ``UserError`` early if a folder neither exists nor can be created, without creating it."""
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not there.is_dir():
        raise UserError(f"the folder '{folder}' cannot be made: '{there}' is not a folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"the folder '{folder}' cannot be made or written to: no permission to write to '{there}'")


def output_file(flag: str, name: str) -> Path:
    """The file that ``flag`` names; raise a ``UserError`` if its folder does not exist."""
    path = Path(name)
    if not path.parent.is_dir():
        raise UserError(f"{flag} {name}: the folder '{path.parent}' does not exist")
    return path
