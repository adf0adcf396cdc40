"""A custom task, from data to resumed run: what a project that extends the trainer writes."""

import csv
import os
import signal
import threading

import pytest
import torch
from other_process import holding
from tiny_task import Points, Regression, parse

from wsfvit.checkpoint.io import load_state_dict_file
from wsfvit.train import loop, run_dir
from wsfvit.train.trainer import run_task
from wsfvit.utils.errors import UserError


class Interrupted(Regression):
    """Asks for a stop in the middle of the second epoch."""

    def build_loaders(self, model):
        return Points(stop=lambda: os.kill(os.getpid(), signal.SIGTERM)), Points()


def test_a_task_of_ones_own_is_trained_logged_and_resumed(tmp_path, capsys):
    seen = []

    class Noting(Regression):
        def after_epoch(self, log, update):
            seen.append(update)

        def at_end(self, trainer):
            seen.append(trainer)

    whole = run_task(parse(tmp_path / "whole"), Noting)
    assert list(whole.rows[0]) == ["epoch", "train_loss", "mse", "lr", "seconds", "points_per_s"]
    assert whole.best["mse"] == min(row["mse"] for row in whole.rows) < 0.01 * whole.rows[0]["train_loss"]
    assert seen[:3] == [6, 12, 18] and seen[3].state.num_updates == 18
    out = capsys.readouterr().out
    assert "plane: 0.00 M parameters" in out and "points/s" in out and "rmse" in out and "best mse" in out

    assert not run_task(parse(tmp_path / "cut"), Interrupted).finished
    resumed = run_task(parse(tmp_path / "cut", "--resume", "auto"), Regression)
    states = [load_state_dict_file(run.run_dir / "last.pth.tar", task="regression") for run in (whole, resumed)]
    for key, value in states[0][0].items():
        assert torch.equal(value, states[1][0][key])
    assert states[0][1]["config"] == {"inputs": 2}


def test_weights_of_another_task_are_refused(tmp_path):
    folder = run_task(parse(tmp_path, "--epochs", "1"), Regression).run_dir
    with pytest.raises(UserError, match="was trained for regression, not for classification"):
        load_state_dict_file(folder / "last.pth.tar")


def test_a_dry_run_of_it_leaves_nothing(tmp_path):
    assert run_task(parse(tmp_path, "--dry-run"), Regression).finished and not list(tmp_path.iterdir())


def test_epochs_without_validation_leave_empty_cells_and_no_best(tmp_path):
    whole = run_task(parse(tmp_path, "--epochs", "5", "--eval-interval", "2"), Regression)
    assert [row["epoch"] for row in whole.rows if "mse" in row] == [1, 3, 4]  # the last epoch has one in any case
    table = list(csv.DictReader((tmp_path / "plane" / "summary.csv").open()))
    assert list(table[0])[:3] == ["epoch", "train_loss", "mse"]
    assert [row["mse"] == "" for row in table] == [True, False, True, False, False]
    kept = sorted(path.name for path in (tmp_path / "plane").glob("checkpoint-*.pth.tar"))
    assert kept == [f"checkpoint-{epoch}.pth.tar" for epoch in (1, 3, 4)]
    assert whole.best["epoch"] in (1, 3, 4)


def test_a_run_that_never_validated_has_no_best_but_its_last_state(tmp_path):
    stopped = run_task(parse(tmp_path, "--eval-interval", "3"), Interrupted)
    assert stopped.best is None and (tmp_path / "plane" / "last.pth.tar").exists()


@pytest.mark.skipif(os.name != "posix", reason="locks as POSIX systems do")
def test_a_folder_in_which_another_process_trains(tmp_path, monkeypatch, capsys):
    """Nothing is touched while it does; once it has ended, however that happened, its last state is continued."""
    args = parse(tmp_path, "--resume", "auto")
    folder = tmp_path / "plane"
    with holding(folder / ".run.lock") as other:
        monkeypatch.setattr(run_dir, "PATIENCE", 0.3)
        with pytest.raises(UserError, match="another process trains in '.*plane': stop it, or choose another"):
            run_task(args, Regression)
        assert [path.name for path in folder.iterdir()] == [".run.lock"]
        monkeypatch.setattr(run_dir, "PATIENCE", 60.0)
        threading.Timer(0.5, other.kill).start()
        assert run_task(args, Regression).finished
    assert "another process trains in" in capsys.readouterr().out
    # The process that trained has let go.
    with holding(folder / ".run.lock"):
        pass


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path):
    (tmp_path / "plane" / ".run.lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write '.*\.run\.lock': Is a directory"):
        run_task(parse(tmp_path), Regression)


def test_the_directory_is_claimed_before_anything_is_built(tmp_path):
    """Of trainings that start at once in a new directory, one goes on."""

    class Looking(Regression):
        def build_model(self, start):
            assert (tmp_path / "plane" / ".run.lock").exists()
            raise UserError("no model")

    with pytest.raises(UserError, match="no model"):
        run_task(parse(tmp_path), Looking)
    assert not list(tmp_path.iterdir()), "a start that failed leaves no directory"


@pytest.mark.parametrize("name", ["last", "last-previous", "checkpoint-0", "model_best"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_directory_that_holds_another_run_is_refused(tmp_path, name, resume):
    (tmp_path / "plane").mkdir()
    (tmp_path / "plane" / f"{name}.pth.tar").write_bytes(b"weights of a week")
    other = run_task(parse(tmp_path / "other", "--epochs", "1"), Regression).run_dir
    with pytest.raises(UserError, match="plane' already holds a run"):
        run_task(parse(tmp_path, *(["--resume", str(other / "last.pth.tar")] if resume else [])), Regression)
    assert (tmp_path / "plane" / f"{name}.pth.tar").read_bytes() == b"weights of a week"


def test_a_start_removes_what_killed_writes_have_left(tmp_path):
    for name in (".last.pth.tar.123.tmp", "bad-steps/.epoch-0-batch-1.pth.tar.123.tmp", "kept.tmp"):
        (tmp_path / "plane" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plane" / name).touch()
    run_task(parse(tmp_path, "--epochs", "1"), Regression)
    assert [path.name for path in (tmp_path / "plane").rglob("*.tmp")] == ["kept.tmp"]


class Unmeasured(Regression):
    """The metric of the first epoch is NaN."""

    def evaluate(self, model, loader, title):
        return {"mse": float("nan")} if title == "validate 0" else super().evaluate(model, loader, title)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_best_epoch_is_not_one_with_nan(tmp_path, capsys, epochs):
    best = run_task(parse(tmp_path, "--epochs", str(epochs)), Unmeasured).best
    assert best is None if epochs == 1 else best["epoch"] > 0
    assert "no epoch has a mse" in capsys.readouterr().out or epochs > 1


def test_an_ema_that_became_nan_is_said(tmp_path, monkeypatch, capsys):
    def broken_update(state, cfg, plain=loop.update):
        norm = plain(state, cfg)
        next(state.ema.module.parameters()).data.fill_(float("nan"))
        return norm

    monkeypatch.setattr(loop, "update", broken_update)
    run_task(parse(tmp_path, "--epochs", "1", "--model-ema"), Regression)
    assert "warning: the EMA of the weights is NaN" in capsys.readouterr().out


def test_a_damaged_best_checkpoint_is_restored_at_the_end(tmp_path, capsys):
    folder = run_task(parse(tmp_path, "--epochs", "2"), Regression).run_dir
    (folder / "model_best.pth.tar").unlink()
    (folder / "model_best.pth.tar").write_bytes(b"torn")
    rest = run_task(parse(tmp_path, "--epochs", "2", "--resume", "auto"), Regression)
    assert f"is damaged or not of epoch {rest.best['epoch']}: restored from" in capsys.readouterr().out
    assert load_state_dict_file(folder / "model_best.pth.tar", task="regression")[1]["epoch"] == rest.best["epoch"]
