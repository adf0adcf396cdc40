"""The loop benchmark runs and relates our loop to the bare one."""

import json
from pathlib import Path

import pytest

from benchmarks import loop


def test_program_writes_the_lost_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "loop.json"
    argv = ["--model", "test_resnet", "--img-size", "32", "--images", "20", "-b", "4"]
    loop.main([*argv, "--repeats", "2", "--out", str(out)])
    written = json.loads(out.read_text())
    bare, ours = written["results"]
    assert (bare["loop"], ours["loop"]) == ("bare", "ours")
    lost = written["lost_share"]
    assert lost["of_images_per_second"] == pytest.approx(1 - ours["images_per_second"] / bare["images_per_second"])
    assert lost["of_images_per_cpu_second"] == pytest.approx(1 - bare["cpu_seconds"] / ours["cpu_seconds"])
    assert bare["images_per_second"] == pytest.approx(20 / bare["median"])
    assert "of the bare loop's images per second" in capsys.readouterr().out
