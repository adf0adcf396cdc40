"""SHA-256 inside a checkpoint file, and detection of damage.

``torch.save`` writes a zip archive, which may end in a comment. The digest is stored there: one file needs one rename,
can be moved and linked, and ``torch.load`` and ``unzip`` still read it.
"""

import hashlib
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from wsfvit.checkpoint.pickle_scan import is_zip_format

_COMMENT = re.compile(rb"wsfvit-sha256:([0-9a-f]{64})")
_CHUNK = 1 << 20


def write_sealed(content: object, file: IO[bytes]) -> None:
    """``torch.save`` into an open binary file, with the SHA-256 of everything before it as the archive's comment."""
    writer = _HashingWriter(file)
    try:
        torch.save(content, writer)  # type: ignore[arg-type]  # it only needs write and flush
    except RuntimeError as err:
        # torch closes the archive even after a failed write, and that error hides the reason.
        raise writer.error or err from err
    comment = b"wsfvit-sha256:" + writer.digest.hexdigest().encode()
    # The archive ends in the length of its comment, a 16-bit zero so far.
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", len(comment)) + comment)


def find_damage(path: Path) -> str | None:
    """Describe the damage in a zip-format checkpoint, or None; other formats have no checksum and are not checked.

    A sealed file is compared with its SHA-256, another one with the CRC-32 of each record. torch checks neither. The
    digest proves that a file is intact, not that it is harmless: the sizes in it are checked in any case. A broken
    archive raises any of several exceptions of ``zipfile``.
    """
    if not is_zip_format(path):
        return None
    with zipfile.ZipFile(path) as archive:
        # torch.save does not compress, and a small file that does, or names a record twice, may unpack to any size.
        packed = next((info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED), None)
        if packed:
            return f"'{packed}' in it is compressed"
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            return "its records claim more bytes than it has"
        if sealed := _COMMENT.fullmatch(archive.comment):
            found = _sha256_before(path, len(archive.comment))
            return None if found == sealed[1].decode() else "its SHA-256 is not the one written with it"
        names = archive.namelist()
        if len(set(names)) < len(names):
            return "it holds two records of one name"
        broken = archive.testzip()
        return f"the checksum of '{broken}' in it is wrong" if broken else None


class _HashingWriter:
    """Write to a file, hash the bytes, and keep the first error of the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as err:
            self.error = self.error or err
            raise

    def flush(self) -> None:
        self.file.flush()


def _sha256_before(path: Path, comment_length: int) -> str:
    """SHA-256 of an archive without its comment."""
    digest = hashlib.sha256()
    left = path.stat().st_size - comment_length - 2
    with open(path, "rb") as file:
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
    digest.update(b"\0\0")
    return digest.hexdigest()
