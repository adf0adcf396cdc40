"""The validate command: the metrics of a run again, over several processes too, and longer horizons."""

import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import wsfvit_cli
from wsfvit.factory.data import loader_options
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.video.args import predict_parser, validate_parser
from wsfvit.video.checkpoint import load_model
from wsfvit.video.data.loader import build_eval_loader
from wsfvit.video.data.moving_mnist import Motion, open_moving_mnist
from wsfvit.video.evaluation import BASELINES, MODEL, evaluate, run_validation
from wsfvit.video.metrics import VideoMetrics, predict_black, repeat_mean_frame
from wsfvit.video.predict import run_prediction


def validate(tiny_run, *argv):
    fixed = ["--checkpoint", str(tiny_run.run_dir / "model_best.pth.tar"), "--device", "cpu", "-j", "0"]
    return run_validation(validate_parser().parse_args([*fixed, *map(str, argv)]))


def test_the_run_is_evaluated_again(tiny_run, tmp_path, capsys):
    """Data, size and frames come from the checkpoint; batches of another size change nothing but rounding."""
    found = validate(tiny_run, "--use-ema", "--sequences", 3, "-b", 3, "--out", tmp_path / "new", "--count", 1)
    tested = json.loads((tiny_run.run_dir / "test.json").read_text())
    again = json.loads((tmp_path / "new" / "test.json").read_text())
    for predictor, figures in tested["figures"].items():
        assert again["figures"][predictor] == found.metrics[predictor] == pytest.approx(figures, rel=1e-5)
    assert again["num_updates"] == tested["num_updates"] and again["size"] == [30, 32]
    assert len(list((tmp_path / "new").iterdir())) == 5
    out = capsys.readouterr().out
    assert "generated-test of built-in digits, 3 sequences" in out and "| copy-last-frame |" in out
    best = validate(tiny_run, "--use-ema", "--split", "validation", "--sequences", 3).metrics[MODEL]
    assert best["mse"] == pytest.approx(tiny_run.best["mse"], rel=1e-5)


def test_what_cannot_be_written_is_noticed_before_anything_is_read(tmp_path, monkeypatch):
    nothing = SimpleNamespace(run_dir=tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made: '.*file' is not a folder"):
        validate(nothing, "--out", tmp_path / "file" / "new")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        validate(nothing, "--movie", ".mp4", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_longer_horizons_and_own_sequences(tiny_run, tmp_path):
    found = validate(tiny_run, "--sequences", 2, "--length", 5, "--count", 1, "--movie", ".gif", "--out", tmp_path)
    assert {len(values["mse"]) for values in found.per_frame.values()} == {5}
    path = tmp_path / "own.npy"
    np.save(path, np.random.default_rng(0).random((2, 6, 12, 14), dtype=np.float32))
    own = validate(tiny_run, "--data", path)
    assert own.metrics[MODEL]["sequences"] == 2
    with pytest.raises(UserError, match="has 6 frames, a sequence needs 13"):
        validate(tiny_run, "--data", path, "--length", 10)
    with pytest.raises(UserError, match="lacks the configuration of its video model"):
        torch.save({"task": "video", "state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
        load_model(tmp_path / "other.pth")


def test_a_named_split_must_exist(tiny_run, tmp_path, capsys):
    def write(name):
        (tmp_path / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(np.full((30, 32), number, np.uint8)).save(tmp_path / name / f"{number}.png")

    write("flat/a")
    flat, split = tmp_path / "flat", tmp_path / "split"
    assert validate(tiny_run, "--data", flat).metrics[MODEL]["sequences"] == 1
    assert "no folders of splits: all of it is evaluated" in capsys.readouterr().out
    with pytest.raises(UserError, match="flat' has no folder validation: give the folder to evaluate itself"):
        validate(tiny_run, "--data", flat, "--split", "validation")
    write("split/Train/a")
    write("split/VAL/b")
    assert validate(tiny_run, "--data", split, "--split", "validation").metrics[MODEL]["sequences"] == 1
    with pytest.raises(UserError, match="split' has no folder test"):
        validate(tiny_run, "--data", split)
    with pytest.raises(UserError, match="--sequences is for Moving MNIST"):
        validate(tiny_run, "--data", flat, "--sequences", 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "6 of 6 frames predicted by 'model' are not finite: leave out --amp"),
        (1e30, "mse, mse_pixel of 'model' are not finite: its predictions are far too large"),
    ],
)
def test_what_is_not_finite_is_refused(tiny_run, tmp_path, value, message):
    saved = torch.load(tiny_run.run_dir / "model_best.pth.tar", weights_only=True)
    saved["state_dict"]["decoder.readout.bias"].fill_(value)
    torch.save(saved, tmp_path / "damaged.pth")
    fixed = ["--checkpoint", str(tmp_path / "damaged.pth"), "--device", "cpu", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        run_validation(validate_parser().parse_args([*fixed, "-j", "0", "--sequences", "3"]))
    assert not (tmp_path / "out").exists()
    if math.isnan(value):
        with pytest.raises(UserError, match="sequence 0: 2 of 2 frames predicted by 'model' are not finite"):
            run_prediction(predict_parser().parse_args(fixed))
        assert not list((tmp_path / "out").iterdir())


class Recorded(World):
    """One of several processes, whose sums are kept and not added up."""

    def sum(self, tensor):
        self.kept.append(tensor.clone())
        return tensor


def test_processes_add_up_to_the_whole(tiny_run):
    model, _ = load_model(tiny_run.run_dir / "model_best.pth.tar")
    dataset = open_moving_mnist("test", None, Motion(5, (30, 32)), 5)
    args = validate_parser().parse_args(["--checkpoint", "", "-j", "0"])
    predictors = {MODEL: model.predict, **BASELINES}
    shares = []
    for size in (1, 3):
        shares.append([])
        for rank in range(size):
            world = Recorded(torch.device("cpu"), rank, size)
            object.__setattr__(world, "kept", shares[-1])
            evaluate(predictors, build_eval_loader(dataset, 3, loader_options(args, world, 2)), world)
    whole, parts = shares
    metrics = VideoMetrics(2, 1, (30, 32))
    for place, alone in enumerate(whole):
        together = sum(parts[place :: len(predictors)])
        assert metrics.compute(together) == pytest.approx(metrics.compute(alone), rel=1e-6)
        assert metrics.compute(together)["sequences"] == 5


def test_baselines():
    frames = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 7, 8)
    expected = {"copy-last-frame": 1.0, "mean-of-input": 0.5, "black": 0.0}
    for name, predict in BASELINES.items():
        assert torch.equal(predict(frames, 4), torch.full((2, 4, 1, 7, 8), expected[name]))
    assert BASELINES["black"] is predict_black and BASELINES["mean-of-input"] is repeat_mean_frame


def test_help_names_every_flag_once(capsys):
    with pytest.raises(SystemExit):
        wsfvit_cli.main(["validate", "--help"], prog="python -m wsfvit.video", group="video")
    text = capsys.readouterr().out
    flags = re.findall(r"^  (?:-\w[^\n]*, )?(--[a-z-]+)", text, re.M)
    assert len(flags) == len(set(flags)) and "--official-test" in flags and "python -m wsfvit.video validate" in text
