"""A custom task, from data to resumed run: what a project that extends the trainer writes."""

import csv
import os
import signal
import threading

import pytest
import torch
from other_process import holding

from wsfvit.checkpoint.io import load_state_dict_file
from wsfvit.cli.common import build_parser
from wsfvit.cli.precision import add_compile
from wsfvit.cli.recipe import add_batch_norm, add_ema, add_optimizer, add_schedule
from wsfvit.cli.run import add_batches, add_logs, add_resume, add_running, add_training_device
from wsfvit.train import run_dir
from wsfvit.train.task import Task
from wsfvit.train.trainer import run_task
from wsfvit.utils.errors import UserError

SLOPES = torch.tensor([[2.0], [-3.0]])


class Points:
    """Six batches of four points on a plane; the third one of the second epoch can ask for a stop."""

    bad_images = ()

    def __init__(self, stop=None):
        self.stop, self.epoch, self.first = stop, 0, 0

    def __len__(self):
        return 6

    def set_position(self, epoch, batch=0):
        self.epoch, self.first = epoch, batch

    def batch_indices(self, batch):
        return [4 * batch + place for place in range(4)]

    def __iter__(self):
        for batch in range(self.first, 6):
            if self.stop and (self.epoch, batch) == (1, 3):
                self.stop()
            points = torch.randn(4, 2, generator=torch.Generator().manual_seed(10 * self.epoch + batch))
            yield points, points @ SLOPES


class Regression(Task):
    unit = "points"
    metric, lower_is_better = "mse", True

    def build_model(self, start):
        torch.manual_seed(0)
        return torch.nn.Linear(2, 1)

    def build_loaders(self, model):
        return Points(), Points()

    def prepare(self, batch, device):
        return [part.to(device) for part in batch]

    def count(self, batch):
        return len(batch[0])

    def loss(self, forward, batch):
        error = (forward(batch[0]) - batch[1]).square().mean(0)
        return error.mean(), {"rmse": error.mean().detach().sqrt()}

    def evaluate(self, model, loader, title):
        with torch.no_grad():
            errors = [(model(points) - heights).square().mean().item() for points, heights in loader]
        return {"mse": sum(errors) / len(errors)}

    def name(self):
        return "plane"

    def describe(self):
        return {"task": "regression", "config": {"inputs": 2}}


class Interrupted(Regression):
    """Asks for a stop in the middle of the second epoch."""

    def build_loaders(self, model):
        return Points(stop=lambda: os.kill(os.getpid(), signal.SIGTERM)), Points()


def parse(tmp_path, *argv):
    parser = build_parser("Fit a plane.")
    recipe = (add_optimizer, add_schedule, add_batch_norm, add_ema)
    for add in (*recipe, add_batches, add_training_device, add_compile, add_resume, add_running, add_logs):
        add(parser)
    parser.set_defaults(channels_last=False)
    fixed = ["--device", "cpu", "--lr", "0.1", "--output", str(tmp_path), "--experiment", "plane", "--epochs", "3"]
    return parser.parse_args([*fixed, "--warmup-epochs", "0", "--log-interval", "2", *argv])


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
