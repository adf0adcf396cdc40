"""How a command ends."""

import os
import sys

import pytest

from wsfvit.utils.errors import UserError, run_main


def test_a_reader_that_has_gone_ends_the_command_without_a_traceback(monkeypatch) -> None:
    """As under ``| head``: short output meets the closed pipe at the end only, long output on the way."""
    for text in ("short", "long" * 100_000):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            with pytest.raises(SystemExit) as ended:
                run_main(lambda text=text: print(text))
            assert ended.value.code == 141


def test_a_broken_pipe_of_another_kind_is_a_defect() -> None:
    def main() -> None:
        raise BrokenPipeError("a worker died")

    with pytest.raises(BrokenPipeError, match="a worker died"):
        run_main(main)


def test_a_message_is_one_line_whatever_a_file_holds(capsys) -> None:
    def main() -> None:
        raise UserError("no class 'a\nb'")

    with pytest.raises(SystemExit):
        run_main(main)
    assert capsys.readouterr().err == "error: no class 'a b'\n"
