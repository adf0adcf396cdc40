"""Programs begin and end alike, run at a tiny size, and what is recorded can be measured again."""

import importlib.util
import json
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import write_results
from wsfvit.utils.errors import UserError, run_main

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    f"{folder}.{path.stem}"
    for folder in ("benchmarks", "experiments", "tools")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
# Programs that a test of their own runs whole are not listed.
SMOKE = {
    "filterbank": "--wavelets db2 --shapes 2x4x8x9 --backward --warmup 1 --repeats 1",
    "peers afno": "--shapes 1x8x4x4 2x8x3x5 --num-blocks 2 --warmup 1 --repeats 1",
    "peers wacnn": "--shapes 1x2x8x8 2x3x4x6 --warmup 1 --repeats 1",
    "save": "--model test_resnet --repeats 1 --threads 1",
    "scaling": "--model test_vit --batch-sizes 1 2 --img-sizes 32 --threads 1 --warmup 1 --repeats 1",
}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", PROGRAMS)
def test_help_and_mistakes(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[Callable[[list[str]], object]] = []
    monkeypatch.setattr("wsfvit.utils.errors.run_main", started.append)
    runpy.run_module(module, run_name="__main__")
    (main,) = started  # so that a UserError is one line
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and f"usage: python -m {module} " in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--no-such-flag"])
    assert ended.value.code == 2 and re.fullmatch(r"error: .*\n", capsys.readouterr().err)


def seconds_of(record: Any) -> Iterator[float]:
    """Every median of a record, and every time of a save, at any depth."""
    if isinstance(record, dict):
        yield from [record[key] for key in ("median", "write_seconds") if key in record]
    for part in record.values() if isinstance(record, dict) else record if isinstance(record, list) else ():
        yield from seconds_of(part)


@pytest.mark.parametrize("command", SMOKE)
def test_program_at_a_tiny_size(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, *peer = command.split()
    out = tmp_path / "run.json"
    importlib.import_module(f"benchmarks.{name}").main([*peer, *SMOKE[command].split(), "--out", str(out)])
    run = json.loads(out.read_text())
    assert {"environment", "settings"} <= run.keys()
    found = list(seconds_of(run))
    assert found and min(found) > 0
    assert "| " in capsys.readouterr().out


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


@pytest.mark.parametrize("argv", [["peers", "wacnn", "--wavelet"], ["filterbank", "--wavelets"]], ids=lambda a: a[0])
def test_a_wavelet_that_does_not_exist(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"benchmarks.{argv[0]}").main([*argv[1:], "db2000"])
    assert "no discrete wavelet is called 'db2000'" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        write_results(tmp_path / "file" / "run.json", {})


def test_loss_of_the_loop(tmp_path: Path) -> None:
    from benchmarks import loop

    out = tmp_path / "loop.json"
    loop.main(
        ["--model", "test_resnet", "--img-size", "32", "--images", "20", "-b", "4", "--repeats", "2", "--out", str(out)]
    )
    written = json.loads(out.read_text())
    bare, ours = written["results"]
    assert (bare["loop"], ours["loop"]) == ("bare", "ours")
    lost = written["lost_share"]
    assert lost["of_images_per_second"] == pytest.approx(1 - ours["images_per_second"] / bare["images_per_second"])
    assert lost["of_images_per_cpu_second"] == pytest.approx(1 - bare["cpu_seconds"] / ours["cpu_seconds"])
    assert bare["images_per_second"] == pytest.approx(20 / bare["median"])


def test_recorded_commands_name_programs_that_exist() -> None:
    """Older records name them as parts of the package, and by older names; kernel_code became a test."""
    older = {"wavemix", "wacnn", "mwa", "kills", "kernel_code"}
    programs = {program.partition(".")[2] for program in PROGRAMS} | older
    recorded = set()
    for path in (ROOT / "results").rglob("*.json"):
        if "history" not in path.parts:
            recorded |= set(re.findall(r'"command": ".*? -m (?:wsfvit\.)?\w+\.(\w+)', path.read_text()))
    assert len(recorded) > 10
    assert recorded <= programs


def test_the_old_address_says_where_the_programs_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("wsfvit.benchmarks", run_name="__main__")
    assert ended.value.code == 2
    assert re.fullmatch(r"error: .*python -m benchmarks\.NAME.*\n", capsys.readouterr().err)
