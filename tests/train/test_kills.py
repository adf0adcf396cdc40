"""Trainings that are killed at random moments and resumed end as if they had been left alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.kill_resume import HOW, compare_runs, first_difference, short_cases

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "argv",
    [
        ["--kills", "7", "--how", "SIGKILL"],
        pytest.param(["--kills", "21", "--how", "SIGKILL"], marks=pytest.mark.slow),
        pytest.param(["--kills", "21", "--starts", "2"], marks=pytest.mark.slow),
    ],
)
def test_interrupted_trainings_equal_uninterrupted_ones(tmp_path, argv):
    """A program of its own, because it forks; it fails where a result differs in one bit."""
    out = tmp_path / "kills.json"
    command = [sys.executable, "-m", "tools.kill_resume", *argv, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())["results"]
    kills = [kill for result in results for kill in result["kills"]]
    assert len(results) == len(short_cases()) and len(kills) == int(argv[1])
    if len(kills) < 21:  # too few to have met everything
        return
    assert {kill["at"] for kill in kills} >= {"time", "file call"}
    assert {kill["how"] for kill in kills} == ({"SIGKILL"} if "--how" in argv else set(HOW))
    assert any(kill["saved"] and kill["saved"][1] > 0 for kill in kills)  # resumed in the middle of an epoch


def test_the_cases_draw_from_everything():
    """All tasks, workers, processes, accumulation, average, mixed precision and all noise are among them."""
    argv = " ".join(part for case in short_cases() for part in case.argv)
    assert {case.argv[0] for case in short_cases()} == {"train", "detection", "video"}
    for option in ("-j 0", "-j 2", "--grad-accum-steps", "--model-ema", "bfloat16", "--mixup", "--cutmix", "--reprob"):
        assert option in argv
    assert "--drop-path" in argv and {case.processes for case in short_cases()} == {1, 2}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"a": torch.zeros(2), "b": [1, {"c": "x"}]}, None),
        ({"a": torch.tensor([0.0, 1e-45]), "b": [1, {"c": "x"}]}, ".a: tensors differ"),
        ({"a": torch.zeros(2).double(), "b": [1, {"c": "x"}]}, ".a: tensors differ"),
        ({"a": torch.zeros(2), "b": [1, {"c": "y"}]}, ".b[1].c: x and y"),
        ({"a": torch.zeros(2), "b": [1]}, ".b: 2 and 1 items"),
        ({"a": torch.zeros(2)}, ": keys ['b']"),
    ],
)
def test_first_difference(other, expected):
    one = {"a": torch.zeros(2), "b": [1, {"c": "x"}], "seconds": 1.0}
    assert first_difference(one, {**other, "seconds": 2.0}) == expected


def test_a_table_that_differs_is_found(tmp_path):
    for name, loss in (("one", 1.5), ("two", 1.25)):
        (tmp_path / name).mkdir()
        for file in ("last.pth.tar", "model_best.pth.tar"):
            torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / name / file)
        (tmp_path / name / "summary.csv").write_text(f"epoch,val_loss,seconds\n0,{loss},{loss}\n")
    assert compare_runs(tmp_path / "one", tmp_path / "two") == "summary.csv[0].val_loss: 1.5 and 1.25"
    assert compare_runs(tmp_path / "one", tmp_path / "one") is None
