"""Measuring programs begin and end alike, a mistake is one line, and what is recorded can be measured again."""

import importlib.util
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.common import write_results
from wsfvit.utils.errors import UserError, run_main

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    path.stem for path in (ROOT / "wsfvit" / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_and_mistakes(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[Callable[[list[str]], object]] = []
    monkeypatch.setattr("wsfvit.utils.errors.run_main", started.append)
    module = f"benchmarks.{name}"
    runpy.run_module(module, run_name="__main__")
    (main,) = started  # so that a UserError is one line
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and f"usage: python -m {module} [-h]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--no-such-flag"])
    assert ended.value.code == 2 and re.fullmatch(r"error: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["loop", "models", "parts", "save", "scaling"])
def test_a_device_or_model_that_is_not_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"benchmarks.{name}").main
    flag = "--models" if name == "models" else "--model"
    for argv, complaint in (
        ([flag, "no_such_model"], "unknown model 'no_such_model'"),
        ([flag, "resnet10t", "--device", "warp"], "--device warp cannot be used here"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_main(lambda argv=argv: main(argv))
        assert ended.value.code == 2
        assert re.fullmatch(f"error: {complaint}: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("argv", [["wacnn", "--wavelet"], ["filterbank", "--wavelets"]], ids=lambda argv: argv[0])
def test_a_wavelet_that_does_not_exist(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"benchmarks.{argv[0]}").main([argv[1], "db2000"])
    assert "no discrete wavelet is called 'db2000'" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        write_results(tmp_path / "file" / "run.json", {})


def test_recorded_commands_name_modules_that_exist() -> None:
    commands = set()
    for path in (ROOT / "results").rglob("*.json"):
        commands |= set(re.findall(r'"command": "(.*)"', path.read_text()))
    modules = {match[1] for command in commands if (match := re.search(r" -m ([\w.]+)", command))}
    assert len(modules) > 10
    assert [module for module in sorted(modules) if importlib.util.find_spec(module) is None] == []
