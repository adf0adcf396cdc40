"""The train command: the published schedule, what a run leaves, exact resume, mistakes."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from video.tiny import TINY, TINY_RUN

import wsfvit_cli
from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.cli.run import parse_with_config
from wsfvit.utils.errors import UserError
from wsfvit.video import train
from wsfvit.video.args import train_parser
from wsfvit.video.checkpoint import load_model
from wsfvit.video.train import OneCycleScheduler

ROOT = Path(__file__).parents[2]


def run(*argv, flags=TINY):
    return train.run_training(parse_with_config(train_parser(), [*flags, *map(str, argv)]))


@pytest.mark.parametrize(("total", "pct_start"), [(40, 0.3), (7, 0.5), (3, 0.3), (1, 0.3), (5, 1.0), (10, 0.0)])
def test_one_cycle_is_that_of_torch(total, pct_start):
    weight = torch.nn.Parameter(torch.zeros(1))
    ours, theirs = (torch.optim.Adam([weight], lr=1e-3) for _ in range(2))
    scheduler = OneCycleScheduler(ours, total, 2e-3, pct_start, div_factor=10, final_div_factor=100)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 2e-3, total, pct_start=pct_start, div_factor=10, final_div_factor=100
    )
    for done in range(total):
        for key in ("lr", "betas"):
            assert ours.param_groups[0][key] == pytest.approx(theirs.param_groups[0][key], rel=1e-12)
        theirs.step()
        if done + 1 < total:
            reference.step()
        scheduler.step_update(done + 1)
    assert ours.param_groups[0]["lr"] == pytest.approx(2e-6), "behind the end it stays there"


def test_one_cycle_moves_the_momentum_of_sgd_and_keeps_the_shares_of_layers():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr_scale": 0.5}], lr=1e-3, momentum=0.5)
    scheduler = OneCycleScheduler(optimizer, 10, 1.0, pct_start=0.3)
    scheduler.step_update(2)
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["momentum"] == 0.85


def test_what_a_run_leaves(tiny_run):
    folder, rows = tiny_run.run_dir, tiny_run.rows
    assert tiny_run.finished and tiny_run.best["mse"] == min(row["mse"] for row in rows)
    with open(folder / "summary.csv") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:6] == ["epoch", "train_loss", "mse", "mae", "ssim", "psnr"] and len(table) == 3
    tested = json.loads((folder / "test.json").read_text())
    assert tested["data"] == "generated-test of built-in digits" and tested["sequences"] == 3
    assert tested["epoch"] == tiny_run.best["epoch"] and tested["weights"] == "ema"
    assert (tested["num_updates"], tested["num_updates_of_the_run"]) == (3 * (tested["epoch"] + 1), 9)
    assert set(tested["figures"]) == {"model", "copy-last-frame", "mean-of-input", "black"}
    assert tested["figures"]["model"]["sequences"] == 3 and "range 1" in tested["definitions"]["ssim"]
    with open(folder / "test_per_frame.csv") as file:
        curves = list(csv.DictReader(file))
    assert [row["frame"] for row in curves] == ["4", "5"] * 4
    assert {path.name for path in folder.glob("test_*")} == {
        "test_per_frame.csv", "test_per_frame.png", "test_0.png", "test_0.gif",
    }  # fmt: skip
    events = next(folder.glob("events.*")).read_bytes()
    assert b"validation/0" in events and b"train/mse" in events


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tiny_run, tmp_path, monkeypatch):
    build = train.build_train_loader

    class Stopping:
        def __init__(self, loader):
            self.loader, self.epoch = loader, 0

        def __getattr__(self, name):
            return getattr(self.loader, name)

        def __len__(self):
            return len(self.loader)

        def set_position(self, epoch, batch):
            self.epoch = epoch
            self.loader.set_position(epoch, batch)

        def __iter__(self):
            for number, batch in enumerate(self.loader):
                if (self.epoch, number) == (1, 1):
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    monkeypatch.setattr(train, "build_train_loader", lambda *args: Stopping(build(*args)))
    with pytest.raises(SystemExit) as ended:
        wsfvit_cli.main(["train", *TINY_RUN, "--output", str(tmp_path)], group="video")
    assert ended.value.code == 75 and not (tmp_path / "tiny" / "test.json").exists()
    monkeypatch.undo()
    resumed = run("--output", tmp_path, "--resume", "auto", flags=TINY_RUN)
    whole, again = (read_checkpoint(found.run_dir / "last.pth.tar") for found in (tiny_run, resumed))
    for key in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(value, again[key][name]) for name, value in whole[key].items())
    assert whole["optimizer"]["param_groups"] == again["optimizer"]["param_groups"]
    texts = [(found.run_dir / "test.json").read_text() for found in (tiny_run, resumed)]
    assert texts[0] == texts[1]


def test_own_arrays_in_colour_with_the_other_family_and_a_start(tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 16, 20, 3), dtype=np.uint8)
    files = {name: tmp_path / f"{name}.npy" for name in ("train", "val")}
    np.save(files["train"], frames[:3])
    np.save(files["val"], frames[3:])
    flags = [flag for flag in TINY if flag not in ("--size", "30", "32")]
    own = ["--data", files["train"], "--channels", "3", "--family", "dwt", "--epochs", "1", "--output", tmp_path]
    own += ["--sched", "constant", "--no-tensorboard"]
    with pytest.raises(UserError, match="no folder validation or val: .*--val-data"):
        run(*own, flags=flags)
    first = run(*own, "--val-data", files["val"], "--experiment", "first", flags=flags).run_dir
    assert "no test sequences" in capsys.readouterr().out and not (first / "test.json").exists()
    model, meta = load_model(first / "model_best.pth.tar")
    assert model.config.channels == 3 and model.config.family == "dwt" and meta["data"]["size"] == [16, 20]
    start = ["--initial-checkpoint", first / "model_best.pth.tar", "--lr", "1e-30", "--experiment", "second"]
    second = run(*own, "--val-data", files["val"], *start, flags=flags).run_dir
    weights = dict(load_model(second / "model_best.pth.tar")[0].named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "video").glob("*.yaml")), ids=lambda path: path.stem)
def test_dry_run_of_every_recipe(path, tmp_path, capsys):
    """At widths and sizes that make it cheap."""
    assert run("-c", path, "--global-batch-size", 2, "--dry-run", "--output", tmp_path).finished
    assert "dry run: one update" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--channels", "3"], "Moving MNIST has one channel"),
        (["--model-dtype", "bfloat16"], "float32: pass --amp"),
        (["--layer-decay", "0.5"], "leave it out"),
        (["--official-test", "none.npy"], "leave out the options that change the test"),
        (["--mnist", "/nowhere"], "has no train-images-idx3-ubyte"),
        (["--data", "/nowhere"], "'/nowhere' does not exist"),
        (["--size", "20", "20"], "smaller than the digits"),
        (["--inter-heads", "3"], "inter_heads 3 must divide"),
        (["--batch-size", "7"], "more than the 6 training sequences"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_user_errors(argv, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        run("--output", tmp_path, *argv)
    assert not list(tmp_path.iterdir())
