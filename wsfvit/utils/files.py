"""Atomic file writes, locks and output folders."""

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from wsfvit.utils.errors import UserError


def write_atomic(
    path: str | os.PathLike[str], write: Callable[[IO[bytes]], object], publish: Callable[[Path], object] | None = None
) -> None:
    """Write a file through a temporary one beside it; if anything fails, the old file is unchanged.

    ``write`` receives the open binary file and writes the content. ``publish`` receives the path of the complete
    temporary file and moves it to ``path``, adding links if needed (default: only move it). If the operating system
    refuses (no space, no permission, no such folder), a ``UserError`` is raised.
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
        if os.name == "posix":  # only there can a folder be opened, which makes the rename durable
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as err:
        raise UserError(f"cannot write '{path}': {err.strerror or err}") from err
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file, or raise an OSError: one would wait for a FIFO, and read some devices without end."""

    def opener(name: str, flags: int) -> int:
        handle = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # open() itself refuses a folder
            return handle
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", name)

    return open(path, "rb", opener=opener)


def refuse_overwriting(flag: str, outputs: Iterable[Path | str], inputs: Iterable[Path | str]) -> None:
    """Raise a ``UserError`` for output files that are also input files, by any spelling or link."""
    known = {os.stat(path)[1:3]: path for path in inputs if os.path.isfile(path)}  # inode and device
    for path in filter(os.path.isfile, outputs):
        if same := known.get(os.stat(path)[1:3]):
            raise UserError(f"{flag} would overwrite the input '{same}': choose another name")


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON text of ``content``; raise a ``UserError`` for NaN or infinity, which JSON has no form for."""
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError as err:
        raise UserError(f"a result is NaN or infinite, which is not written: {err}") from err


@contextmanager
def held(lock: Path, patience: float = 0) -> Iterator[bool]:
    """Hold an exclusive lock until the block or the process ends; yields whether it was acquired.

    ``lock`` is a file for this purpose, created with its folder if missing (else a ``UserError``), and ``patience`` the
    seconds to wait for another process to release it. Without lock support in the operating or file system, locking is
    a no-op that succeeds.
    """
    until = time.monotonic() + patience
    while True:
        make_folder(lock.parent)
        try:
            file = open(lock, "a")
        except OSError as err:
            raise UserError(f"cannot write '{lock}': {err.strerror or err}") from err
        with file:
            # Its last holder may have removed the file; then another process does not find this one.
            acquired = _lock(file) and lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())
            if acquired or time.monotonic() >= until:
                yield acquired
                return
        time.sleep(0.2)


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
