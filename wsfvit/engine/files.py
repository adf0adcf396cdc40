"""Files that are either the old one or the new one, never half of it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from wsfvit.errors import UserError


def write_atomic(
    path: str | os.PathLike[str],
    write: Callable[[IO[bytes]], object],
    publish: Callable[[Path], object] | None = None,
) -> None:
    """Writes a file through a temporary one beside it; if anything fails, the old file stays as it was.

    Args:
        path: The file to write.
        write: Receives the open binary file and writes the content.
        publish: Receives the path of the complete temporary file and moves it to ``path``, linking what else is to be
            linked; by default it is just moved.

    Raises:
        UserError: the operating system refused (no space, no permission, no such folder).
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
    _sync_folder(path.parent)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are missing.

    Raises:
        UserError: the operating system refused.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError(f"the folder '{folder}' cannot be made: {err.strerror or err}") from err


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable; only POSIX systems can open a folder for that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
