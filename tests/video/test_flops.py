"""The video model's cost part by part, and how the commands of the package are found."""

from functools import partial
from pathlib import Path

import pytest

from wsfvit.utils.errors import UserError
from wsfvit.video.flops import RECOUNTED, count_video_model, part_names
from wsfvit.video.model.simvp import SimVPConfig
from wsfvit_cli import VIDEO, dispatch

main = partial(dispatch, group="video")

TINY = "flops --frames-in 4 --frames-out 3 --hid-s 8 --hid-t 16 --head-dim 8 --inter-heads 4 --size 20 30".split()


def test_published_setting_costs_what_the_release_does() -> None:
    found = count_video_model(SimVPConfig(), (1, 10, 1, 64, 64))
    modules = {module.name: module for module in found.modules}
    assert found.params == 37_571_249
    for name, want in RECOUNTED.items():
        assert modules[name].cost.macs / 1e9 == pytest.approx(want, abs=0.0007), name
    parts = [modules[name] for name in part_names(SimVPConfig())]
    assert sum(part.params for part in parts) == found.params
    assert sum(part.cost.macs for part in parts) == found.macs


def test_tables_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv, md = tmp_path / "new" / "t.csv", tmp_path / "t.md"
    main([*TINY, "--output", str(csv), str(md)])
    assert capsys.readouterr().out.count("table: ") == 2
    header, *rows = csv.read_text().splitlines()
    assert header == "part,params,macs,recounted_macs_g"
    assert rows[-1].startswith("total,") and rows[-1].endswith(","), "no published figure for another setting"
    assert "| total |" in md.read_text()


def test_mistakes_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.csv or \.md"):
        main([*TINY, "--output", str(tmp_path / "t.txt")])
    with pytest.raises(UserError, match="head_dim 7 must divide"):
        main([*TINY, "--head-dim", "7"])


def test_every_command_has_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nothing"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and all(f"  {command} " in shown for command in VIDEO)
