"""Updates that are not finite: skipped, dumped, replayed, survived by a resume."""

import os
import signal
import sys

import pytest
import timm
import torch
from PIL import Image
from tiny_data import TINY_RUN, TinyImages
from tiny_run import assert_equal, state_of, stop_after
from torch import nn

import train
from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.cli.train import parse_train_args
from wsfvit.train import replay
from wsfvit.train.classify import run_training
from wsfvit.utils.errors import UserError
from wsfvit_cli import dispatch

WHITE = 7
# Twelve updates of eight images in four epochs; the white image is in one of each epoch.
RECIPE = [*TINY_RUN, "--no-aug", "--grad-accum-steps", "2", "--epochs", "4", "--experiment", "run", "--model-ema"]


class Spike(nn.Module):
    """Is not finite where it is on: in its output, or in the gradient of its input alone."""

    def __init__(self, where):
        super().__init__()
        self.where, self.on = where, False

    def forward(self, x):
        if not (self.on and self.training):
            return x
        return x * float("inf") if self.where == "output" else x + (0 * x).sqrt()


@pytest.fixture(params=["output", "gradient"])
def spike(request, monkeypatch):
    """All models get a spike after their first block, which the white image turns on."""
    images = TinyImages(24)
    images.images[WHITE] = Image.new("RGB", (40, 36), "white")
    monkeypatch.setattr("wsfvit.factory.data.create_dataset", lambda *args, **kwargs: images)

    def create_model(*args, plain=timm.create_model, **kwargs):
        model, module = plain(*args, **kwargs), Spike(request.param)
        model.layer1.append(module)

        def look(model, inputs):
            module.on = bool((inputs[0].mean((1, 2, 3)) > 0.9).any())

        model.register_forward_pre_hook(look)
        return model

    monkeypatch.setattr("timm.create_model", create_model)
    return request.param


def run(output, *more):
    return run_training(parse_train_args([*RECIPE, "--output", str(output), *more]))


def test_skipped_dumped_and_replayed(spike, tmp_path, monkeypatch, capsys):
    result = run(tmp_path)
    out = capsys.readouterr().out
    state = state_of(result["run_folder"])
    assert result["finished"] and (state["skipped"]["bad_steps"], state["skipped"]["overflows"]) == (4, 0)
    assert state["num_updates"] == 12 and all(value.isfinite().all() for value in state["state_dict"].values())
    assert "(1 in a row, 4 in all)" in out and "left out so far: 4 updates that were not finite" in out
    dumps = sorted((tmp_path / "run" / "bad-steps").iterdir())
    assert len(dumps) == 3  # the first ones alone
    step = read_checkpoint(dumps[1])["bad_step"]
    assert sum(step["indices"], []).count(WHITE) == 1 and len(step["batches"]) == 2

    seen = []
    plain = replay.run_replay
    monkeypatch.setattr(replay, "run_replay", lambda args: seen.append(plain(args)))
    dispatch(["replay", str(dumps[1])])
    (found,) = seen
    assert [repr(loss) for loss in found["losses"]] == [repr(loss) for loss in step["losses"]]
    assert repr(found["norms"]) == repr(step["norms"])
    out = capsys.readouterr().out
    if spike == "output":
        assert "first output that is not finite: layer1.1 (Spike)" in out and "its inputs are finite, up to" in out
        assert sum(loss != loss for loss in found["losses"]) == 1
    else:
        assert "all outputs are finite; first gradient that is not: that of the output of layer1.0" in out
        assert found["first_output"] == ""
    row = next(line.split() for line in out.splitlines() if line.startswith("conv1.0 "))
    assert row[-2:] == ["nan", "nan"] and float(row[2]) == pytest.approx(step["norms"]["conv1.0"][0], rel=1e-3)


@pytest.mark.parametrize("spike", ["output"], indirect=True)
def test_resumed_after_a_bad_step_equals_uninterrupted(spike, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", "--epochs", "1")
    done = next(iter((whole["run_folder"] / "bad-steps").iterdir()))
    bad_update = read_checkpoint(done)["bad_step"]["batches"][0] // 2 + 1
    with monkeypatch.context() as patch:
        stop_after(patch, bad_update, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        stopped = run(tmp_path / "cut", "--epochs", "1")
    assert not stopped["finished"] and state_of(stopped["run_folder"])["skipped"]["bad_in_a_row"] == 1
    resumed = run(tmp_path / "cut", "--epochs", "1", "--resume", "auto")
    assert_equal(state_of(whole["run_folder"]), state_of(resumed["run_folder"]))


@pytest.mark.usefixtures("tiny_images")
def test_a_diverged_run_ends_in_one_line_and_saves_nothing(tmp_path, monkeypatch, error_of):
    more = ["--opt", "sgd", "--lr", "1e30", "--max-bad-steps", "3", "--output", str(tmp_path), "--experiment", "run"]
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY_RUN, *more])
    assert "3 updates in a row were not finite, the last in epoch 0" in error_of(train.main)
    assert not (tmp_path / "run" / "last.pth.tar").exists()
    assert len(list((tmp_path / "run" / "bad-steps").iterdir())) == 3


@pytest.mark.parametrize("spike", ["output"], indirect=True)
def test_replay_mistakes(spike, tmp_path, monkeypatch):
    folder = run(tmp_path, "--epochs", "1")["run_folder"]

    with pytest.raises(UserError, match="is no dump of a bad step"):
        dispatch(["replay", str(folder / "last.pth.tar")])
    monkeypatch.setattr("wsfvit.factory.data.create_dataset", lambda *args, **kwargs: TinyImages(32))
    with pytest.raises(UserError, match="the batches are not those of the run: .*--data-dir"):
        dispatch(["replay", str(next((folder / "bad-steps").iterdir()))])


def test_a_dump_that_cannot_be_written_does_not_end_the_run(spike, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bad-steps").write_text("in the way")
    assert run(tmp_path, "--epochs", "1")["finished"]
    assert "no dump: " in capsys.readouterr().out


def test_norms_of_nothing_are_none():
    from wsfvit.train.nonfinite import module_norms

    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Sequential(nn.Sequential(nn.Linear(1, 1))))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
    model[0].weight.grad = torch.tensor([[0.0, 2.0]])
    norms = module_norms(model)
    assert norms["0"] == [5.0, 2.0] and norms["1.0"][1] is None and list(norms) == ["0", "1.0"]
