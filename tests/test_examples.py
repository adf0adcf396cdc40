"""The examples run, at tiny size."""

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = ["--device", "cpu", "-j", "0", "--no-tensorboard"]


def run(name: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *argv])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_has_a_test_and_at_most_100_lines() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"own_task.py", "own_model.py", "photograph.py"}
    assert all(len(path.read_text().splitlines()) <= 100 for path in EXAMPLES.glob("*.py"))


def test_own_task_learns_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ["-b", "400", "--opt", "adamw", "--lr", "5e-3", "--sched", "none", "--output", str(tmp_path)]
    for epochs in ("1", "2"):
        run("own_task.py", [*QUICK, *recipe, "--epochs", epochs, "--experiment", "a", "--resume", "auto"], monkeypatch)
    with (tmp_path / "a" / "summary.csv").open() as file:
        psnr = [float(row["psnr"]) for row in csv.DictReader(file)]
    noisy = 10.5  # of the images with their noise, whose standard deviation is 0.3
    assert len(psnr) == 2 and noisy < psnr[0] < psnr[1]
    assert "best psnr" in capsys.readouterr().out


def test_own_model_trains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--dataset", "synthetic/3", "--num-classes", "3", "--img-size", "32", "-b", "2", "--dry-run"]
    run("own_model.py", ["train", "--model", "wsfvit_db2", *data, *QUICK], monkeypatch)
    out = capsys.readouterr().out
    assert "wsfvit_db2 at 3x32x32" in out and "dry run: one update" in out


def test_photograph_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "maps.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    run("photograph.py", [str(photo), "--size", "32", "--target", "3", "--out", str(out)], monkeypatch)
    with Image.open(out) as figure:
        assert min(figure.size) > 100
