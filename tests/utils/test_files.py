"""Files are written whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from wsfvit.utils.errors import UserError
from wsfvit.utils.files import write_text_atomic


@pytest.mark.parametrize("of_folder", [False, True])
def test_a_full_disk_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_folder: bool) -> None:
    sync = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folder:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="cannot write '.*a.csv': No space left on device"):
        write_text_atomic(tmp_path / "a.csv", "text")
    assert [path.name for path in tmp_path.iterdir()] == (["a.csv"] if of_folder else [])
