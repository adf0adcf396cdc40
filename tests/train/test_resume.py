"""An interrupted and resumed training equals one that was not interrupted, bit for bit."""

import math
import os
import shutil
import signal

import pytest
import torch
from tiny_data import TINY_RUN
from tiny_run import assert_equal, state_of, stop_after

from tools.kill_resume import read_table
from wsfvit.cli.run import parse_with_config
from wsfvit.cli.train import parse_train_args, train_parser
from wsfvit.train.classify import run_training
from wsfvit.train.run_dir import read_arguments
from wsfvit.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("tiny_images")

# Everything that draws random numbers or keeps a state: groups of four and two batches, three of each per epoch.
RECIPE = [*TINY_RUN, "--grad-accum-steps", "4", "--mixup", "0.4", "--cutmix", "1", "--reprob", "0.5", "--drop", "0.1"]
RECIPE += ["--drop-path", "0.2", "--aa", "rand-m9-mstd0.5-inc1", "--color-jitter", "0.4", "--clip-grad", "1"]
RECIPE += ["--model-ema", "--model-ema-decay", "0.7", "--sched-on-updates", "--experiment", "run"]


def train(output, *more):
    return run_training(parse_train_args([*RECIPE, "--output", str(output), *more]))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        from tiny_data import TinyImages

        patch.setattr("wsfvit.factory.data.create_dataset", lambda *args, **kwargs: TinyImages(24))
        result = train(tmp_path_factory.mktemp("whole"))
    assert result.finished and len(result.rows) == 2
    return result.run_dir


# Two updates per epoch: in the middle of either, and at the last batch of the first before it is validated.
@pytest.mark.parametrize("updates", [1, 2, 3])
def test_stopped_and_resumed_equals_uninterrupted(uninterrupted, tmp_path, monkeypatch, capsys, updates):
    with monkeypatch.context() as patch:
        stop_after(patch, updates, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        stopped = train(tmp_path)
    assert not stopped.finished
    half = state_of(stopped.run_dir)
    assert half["num_updates"] == updates and half["position"]["batch"] == (4 if updates % 2 else 6)
    resumed = train(tmp_path, "--resume", "auto")
    assert resumed.finished
    assert f"after {updates} updates" in capsys.readouterr().out
    assert_equal(state_of(uninterrupted), state_of(tmp_path / "run"))
    assert read_table(uninterrupted) == read_table(tmp_path / "run")


def test_killed_and_resumed_from_a_recovery_save(uninterrupted, tmp_path, monkeypatch):
    def die():
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        stop_after(patch, 4, die)
        train(tmp_path, "--recovery-interval", "3")
    position = state_of(tmp_path / "run")["position"]
    assert (position["epoch"], position["batch"]) == (1, 4)
    train(tmp_path, "--resume", str(tmp_path / "run" / "last.pth.tar"))
    assert_equal(state_of(uninterrupted), state_of(tmp_path / "run"))


def test_plateau_goes_on_counting(tmp_path):
    """Three epochs without improvement, of which the second process sees one, halve the rate."""
    plateau = ["--sched", "plateau", "--patience-epochs", "1", "--decay-rate", "0.5"]
    plateau += ["--cooldown-epochs", "0", "--lr", "1e-7", "--no-sched-on-updates"]
    plateau += ["--model", "test_vit"]  # without batch norm, whose statistics move at any rate
    train(tmp_path, *plateau, "--epochs", "2")
    resumed = state_of(train(tmp_path, *plateau, "--epochs", "3", "--resume", "auto").run_dir)
    whole = state_of(train(tmp_path / "whole", *plateau, "--epochs", "3").run_dir)
    assert_equal(whole["scheduler"], resumed["scheduler"])
    assert_equal(whole["optimizer"], resumed["optimizer"])
    assert resumed["optimizer"]["param_groups"][0]["lr"] == 5e-8


def test_best_checkpoint_survives_a_resume(tmp_path):
    first = train(tmp_path, "--epochs", "1", "--eval-metric", "loss")
    again = train(tmp_path, "--epochs", "2", "--eval-metric", "loss", "--resume", "auto", "--lr", "1e-12")
    assert [row["epoch"] for row in again.rows] == [0, 1]
    best = min(again.rows, key=lambda row: row["val_loss"])
    assert again.best == best and again.rows[0] == first.rows[0]
    kept = torch.load(tmp_path / "run" / "model_best.pth.tar", weights_only=True)
    assert kept["epoch"] == best["epoch"]


def test_auto_starts_anew_where_there_is_nothing(tmp_path, capsys):
    assert train(tmp_path, "--resume", "auto", "--epochs", "1").finished
    assert "starting from scratch" in capsys.readouterr().out


def test_changed_arguments_are_said(tmp_path, capsys):
    train(tmp_path, "--epochs", "1")
    again = train(tmp_path, "--epochs", "1", "--resume", "auto", "--clip-grad", "2")
    out = capsys.readouterr().out
    assert "different from the run that is resumed: clip_grad 1.0 -> 2.0" in out
    assert "all 1 epochs are done" in out
    assert again.finished and len(again.rows) == 1


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--resume", "auto", "--experiment", ""], "pass --experiment NAME"),
        (["--resume", "none.pth.tar"], "does not exist"),
        (["--resume", "auto", "-b", "8"], "in the middle of an epoch of 6 batches of 4 images"),
        (["--resume", "auto", "--opt", "sgd"], "--resume auto: it was trained with --opt adamw"),
        (["--resume", "auto", "--model", "test_vit"], "--resume auto: it does not fit this run"),
        ([], "already holds a run: continue it with --resume auto"),
    ],
)
def test_resume_mistakes(tmp_path, monkeypatch, more, expected):
    with monkeypatch.context() as patch:
        stop_after(patch, 1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        train(tmp_path)
    with pytest.raises(UserError, match=expected):
        train(tmp_path, *more)


def test_another_size_or_model_of_equal_weights_is_not_a_resume(tmp_path):
    """Weights are resized and shared between the families; the optimizer's moments are neither."""
    wsfvit = ["--model", "wsfvit_p0_224", "--model-kwargs", "depths=(1,1,1,1)", "embed_dims=(24,24,24,24)"]
    wsfvit += ["inter_heads=(2,2,2,2)"]
    wsfvit += ["--opt", "adamw", "--epochs", "1", "--no-model-ema"]
    train(tmp_path, *wsfvit, "--img-size", "64")
    resumed = ["--resume", "auto", "--epochs", "2"]
    with pytest.raises(UserError, match="bias_table is .*: keep the image size, or pass --no-resume-opt"):
        train(tmp_path, *wsfvit, "--img-size", "32", *resumed)
    wsfvit[1] = "wsfvit_dwt_p0_224"
    with pytest.raises(UserError, match="it trained wsfvit_p0_224, not wsfvit_dwt_p0_224"):
        train(tmp_path, *wsfvit, "--img-size", "64", *resumed)


def test_weights_alone_can_be_resumed_with_another_optimizer(tmp_path):
    train(tmp_path, "--epochs", "1")
    result = train(tmp_path, "--resume", "auto", "--no-resume-opt", "--opt", "sgd", "--start-epoch", "1")
    assert [row["epoch"] for row in result.rows] == [0, 1]
    # Two updates of four are behind: the cosine of --sched-on-updates is at its half, and the last one follows.
    assert result.rows[1]["lr"] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 3 / 4)) / 2)


def test_resume_of_bare_weights_says_what_to_do(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="holds no training state .*--initial-checkpoint"):
        train(tmp_path, "--resume", str(tmp_path / "bare.pth"))


def run_command_line(*argv):
    """As ``train.py`` does, arguments of the resumed run included."""
    return run_training(parse_with_config(train_parser(), argv, read_arguments))


def test_a_file_or_run_directory_is_resumed_with_its_arguments(uninterrupted, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        run = train(tmp_path).run_dir
    shutil.copy(run / "last.pth.tar", tmp_path / "half.pth.tar")
    resumed = run_command_line("--resume", str(run))
    assert resumed.finished and resumed.run_dir == run
    assert_equal({**state_of(uninterrupted), "args": None}, {**state_of(run), "args": None})
    assert "different" not in capsys.readouterr().out
    elsewhere = run_command_line("--resume", str(tmp_path / "half.pth.tar"), "--output", str(tmp_path / "new"))
    assert elsewhere.run_dir.parent == tmp_path / "new" and elsewhere.rows[0]["lr"] == resumed.rows[0]["lr"]


def test_flags_given_again_win_and_are_said(tmp_path, capsys):
    run = train(tmp_path, "--epochs", "1", "--lr", "0.5", "--start-epoch", "0").run_dir
    yaml = tmp_path / "more.yaml"
    yaml.write_text("clip_grad: 3\n")
    result = run_command_line("--resume", str(run), "--epochs", "2", "-c", str(yaml), "--data-dir", "elsewhere")
    said = capsys.readouterr().out
    assert "different from the run that is resumed: clip_grad 1.0 -> 3.0, data_dir None -> elsewhere" in said
    assert "epochs 1 -> 2" in said and [row["epoch"] for row in result.rows] == [0, 1]
    assert state_of(run)["args"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("saved", "given", "expected"),
    [
        ({"lr": 0.1, "lr_base": 1.0}, ["--lr-base", "2"], {"lr": None, "lr_base": 2.0}),
        ({"global_batch_size": 64, "grad_accum_steps": 4}, [], {"global_batch_size": 64, "grad_accum_steps": 1}),
        (
            {"global_batch_size": 64, "grad_accum_steps": 4},
            ["--grad-accum-steps", "2"],
            {"global_batch_size": None, "grad_accum_steps": 2},
        ),
        ({"input_size": [3, 32, 32]}, ["--img-size", "64"], {"input_size": None, "img_size": 64}),
        ({"data": "old", "epochs": 7}, ["--data-dir", "new"], {"data": None, "data_dir": "new", "epochs": 7}),
        ({"epochs": 7}, ["--epochs", "300"], {"epochs": 300}),  # given, though it is the default
        ({"device_modules": ["antigravity"], "trust_checkpoint": True, "start_epoch": 3, "output": "/"}, [],
         {"device_modules": None, "trust_checkpoint": False, "start_epoch": None, "output": ""}),
    ],
)  # fmt: skip
def test_which_arguments_of_a_file_are_taken(tmp_path, saved, given, expected):
    file = str(tmp_path / "last.pth.tar")
    torch.save({"args": saved}, file)
    args = parse_with_config(train_parser(), ["--resume", file, *given], read_arguments)
    assert {key: getattr(args, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"train_split": "pipe:rm x"}, "reads its data from 'pipe:rm x'"),
        ({"dataset": "hfds/none/such"}, "reads the data set"),
        ({"model_kwargs": {"checkpoint_path": "x"}}, "may not set checkpoint_path"),
        ({"epochs": "many"}, "epochs: 'many' does not fit"),
    ],
)
def test_arguments_of_a_file_are_checked(tmp_path, saved, expected, error_of):
    torch.save({"args": saved}, tmp_path / "last.pth.tar")
    assert expected in error_of(lambda: run_command_line("--resume", str(tmp_path / "last.pth.tar")))


def test_a_folder_without_a_run_is_not_resumed(tmp_path, error_of):
    assert "holds no run" in error_of(lambda: run_command_line("--resume", str(tmp_path)))
    (tmp_path / "args.yaml").write_text("epochs: 1\n")
    assert "holds no checkpoint" in error_of(lambda: run_command_line("--resume", str(tmp_path), *TINY_RUN))
