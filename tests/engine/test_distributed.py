"""Two processes on the CPU, started by torchrun, against one process."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine.tiny_data import write_folder

from wsfvit.engine.args import parse_train_args
from wsfvit.engine.train import run_training

ROOT = Path(__file__).parents[2]


def test_two_processes_of_half_the_batch_train_alike(tmp_path):
    """Without draws that differ from rank to rank and without batch norm the losses agree up to rounding.

    The gradient is a mean of two means instead of one, so float32 sums differ in their order; AdamW divides by the
    gradient's size, which turns 1e-7 into a few 1e-6 of the loss over six updates.
    """
    data = write_folder(tmp_path / "data")
    argv = [str(data), "--model", "test_vit", "--num-classes", "4", "--img-size", "32", "--device", "cpu", "-j", "0"]
    argv += ["--no-aug", "--opt", "adamw", "--lr", "1e-3", "--epochs", "2", "--warmup-epochs", "0", "-vb", "5"]
    argv += ["--grad-accum-steps", "2", "--model-ema", "--model-ema-decay", "0.5", "--clip-grad", "1"]
    argv += ["--no-tensorboard", "--output", str(tmp_path)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(ROOT / "train.py"), *argv, "-b", "2", "--experiment", "two"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 0: train loss") == 1  # rank 0 alone speaks
    one = run_training(parse_train_args([*argv, "-b", "4", "--experiment", "one"]))
    with open(tmp_path / "two" / "summary.csv") as file:
        two = list(csv.DictReader(file))
    assert len(two) == 2
    for row, other in zip(one["rows"], two, strict=True):
        for key in ("train_loss", "val_loss"):
            assert row[key] == pytest.approx(float(other[key]), rel=1e-5), key
        assert row["top1"] == pytest.approx(float(other["top1"]))
        assert row["lr"] == pytest.approx(float(other["lr"]), rel=1e-5)
    states = [torch.load(tmp_path / name / "last.pth.tar", weights_only=True) for name in ("one", "two")]
    assert states[0]["num_updates"] == states[1]["num_updates"] == 4
    for key, value in states[0]["state_dict_ema"].items():
        torch.testing.assert_close(value, states[1]["state_dict_ema"][key], atol=2e-5, rtol=1e-4)
