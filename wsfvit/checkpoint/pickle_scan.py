"""Imports that a pickle requests, read from its opcodes without running them."""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Allowed by weights_only loading, so that a message names only what it refused.
_HARMLESS = re.compile(
    r"collections\.OrderedDict|argparse\.Namespace|torch\.Size|torch\.device|torch\.\w*Storage"
    r"|torch\.storage\.\w+|torch\._utils\._rebuild_\w+|torch\._tensor\.\w+|torch\.nn\.parameter\.Parameter"
)


def refused_globals(path: Path) -> list[str]:
    """Names such as ``posix.system`` in the pickle in ``path`` that safe loading does not allow.

    For a damaged file, the names before the damage; for a file that is not a pickle, none.
    """
    names = (name for stream in _pickle_streams(path) for name in _globals(stream))
    return list(dict.fromkeys(name for name in names if not _HARMLESS.fullmatch(name)))


def is_zip_format(path: Path) -> bool:
    """Whether ``torch.load`` reads the file as a zip archive (``zipfile`` also accepts a pickle that contains one)."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"


def _pickle_streams(path: Path) -> Iterator[IO[bytes]]:
    if not is_zip_format(path):
        yield io.BytesIO(path.read_bytes())
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    yield io.BytesIO(archive.read(name))
    # zipfile reports a broken archive in many ways; the loader has its own message.
    except Exception:
        return


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """Yield ``module.name`` for every import in the consecutive pickles in ``stream``."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    while True:
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:])
                elif opcode.name.startswith("MEMOIZE"):
                    memo[len(memo)] = strings[-1] if strings else ""
                elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                    strings.append(memo.get(int(str(argument)), "?"))
                elif "UNICODE" in opcode.name:
                    strings.append(str(argument))
        except (ValueError, IndexError, KeyError):
            return  # the end of the last pickle, or damage: genops reports both this way
