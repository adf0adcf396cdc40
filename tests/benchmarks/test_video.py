"""The video benchmark: its baseline is the published computation, and different models are not timed."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import video
from benchmarks.baseline_video import BaselineSimVP
from wsfvit.video import SimVP, SimVPConfig
from wsfvit.video.flops import part_names

SMALL = ["--frames", "2", "--size", "32", "--hid-s", "16", "--hid-t", "64", "--batch-size", "1", "--threads", "1"]


def test_baseline_has_the_parameters_of_the_published_model() -> None:
    with torch.device("meta"):
        ours, baseline = SimVP().state_dict(), BaselineSimVP().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in baseline.items()}


def test_program_times_the_model_and_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    video.main([*SMALL, "--precision", "bfloat16", "--warmup", "1", "--repeats", "1", "--out", str(out)])
    run = json.loads(out.read_text())
    parts = ["total", *part_names(SimVPConfig())]
    found = [(r["part"], r["mode"], r["model"]) for r in run["results"]]
    modes = ("inference", "training")
    assert found == [(p, mode, m) for p in parts for mode in modes for m in (video.OURS, video.BASELINE)]
    assert all(r["median"] > 0 for r in run["results"])
    assert run["relative_error"]["output"] < 1e-4
    assert "where the time goes" in capsys.readouterr().out


def test_different_models_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    build = video.build_models

    def build_different(*args: object) -> dict[str, torch.nn.Module]:
        models = build(*args)
        torch.nn.init.ones_(models[video.OURS].decoder.readout.bias)
        return models

    monkeypatch.setattr(video, "build_models", build_different)
    with pytest.raises(SystemExit, match="nothing was timed"):
        video.main(SMALL)


@pytest.mark.parametrize("wrong", [["--size", "40"], ["--frames", "4", "--hid-s", "16", "--hid-t", "64"]])
def test_settings_that_the_baseline_cannot_take(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        video.parse_args(wrong)
