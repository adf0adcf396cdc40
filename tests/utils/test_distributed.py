"""Two processes on the CPU, started by torchrun: against one process, and when one of them dies."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_data import write_folder

from tools.kill_resume import compare_runs, read_table
from wsfvit.cli.train import parse_train_args
from wsfvit.train.classify import run_training
from wsfvit.utils.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPE = ["--model", "test_vit", "--num-classes", "4", "--img-size", "32", "--device", "cpu", "-j", "0", "--no-aug"]
RECIPE += ["--opt", "adamw", "--lr", "1e-3", "--epochs", "2", "--warmup-epochs", "0", "-vb", "5", "--no-tensorboard"]
RECIPE += ["--grad-accum-steps", "2", "--model-ema", "--model-ema-decay", "0.5", "--clip-grad", "1"]
BATCHES = 4  # of an epoch of 16 images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"))


def launch(script, data, output, name, *more, restarts=0, death=""):
    """Trains on two processes; returns what torchrun ended with."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), str(ROOT / script), str(data), *RECIPE, "-b", "2"]
    command += ["--output", str(output), "--experiment", name, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DEATH": death}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)


def train_alone(data, output, name, *more):
    return run_training(parse_train_args([str(data), *RECIPE, "--output", str(output), "--experiment", name, *more]))


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """The run folder of a training on two processes."""
    output = tmp_path_factory.mktemp("two")
    done = launch("train.py", data, output, "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 0: train loss") == 1  # only rank 0 logs
    return output / "two"


@pytest.fixture(scope="module")
def broken(data, tmp_path_factory):
    """The folder of a run that ended in its second epoch by a defect of one process, its output, and its seconds."""
    output, started = tmp_path_factory.mktemp("broken"), time.perf_counter()
    done = launch("tests/dying_rank.py", data, output, "broken", "--recovery-interval", "2", death="raise")
    assert done.returncode != 0
    return output, done.stdout + done.stderr, time.perf_counter() - started


def assert_alike(one_rows, two_rows):
    """The losses of one and of two processes agree up to rounding.

    The gradient is a mean of two means instead of one, so float32 sums differ in their order; AdamW divides by the
    gradient's size, which turns 1e-7 into a few 1e-6 of the loss over six updates.
    """
    assert len(one_rows) == len(two_rows) == 2
    for row, other in zip(one_rows, two_rows, strict=True):
        for key in ("train_loss", "val_loss", "lr"):
            assert float(row[key]) == pytest.approx(float(other[key]), rel=1e-5), key
        assert float(row["top1"]) == pytest.approx(float(other["top1"]))


def test_two_processes_of_half_the_batch_train_alike(two, data, tmp_path):
    """Without draws that differ from rank to rank and without batch norm."""
    one = train_alone(data, tmp_path, "one", "-b", "4")
    assert_alike(one.rows, read_table(two))
    states = [torch.load(folder / "last.pth.tar", weights_only=True) for folder in (one.run_dir, two)]
    assert states[0]["num_updates"] == states[1]["num_updates"] == 4
    for key, value in states[0]["state_dict_ema"].items():
        torch.testing.assert_close(value, states[1]["state_dict_ema"][key], atol=2e-5, rtol=1e-4)


def test_a_killed_process_is_restarted_and_the_run_goes_on_exactly(two, data, tmp_path):
    more = ["--recovery-interval", "2", "--resume", "auto"]
    done = launch("tests/dying_rank.py", data, tmp_path, "killed", *more, restarts=1, death="kill")
    assert done.returncode == 0, done.stderr
    assert "after 3 updates" in done.stdout
    assert compare_runs(two, tmp_path / "killed") is None


def test_a_defect_of_one_process_ends_the_job_with_its_traceback(broken):
    _, output, seconds = broken
    assert seconds < 60
    cause = output[output.index("Root Cause") :]
    assert "a defect of rank 1" in cause and "in doomed_update" in cause, output


def test_another_number_of_processes_goes_on_with_the_same_images(two, broken, data):
    """The state of two processes, in the middle of an epoch, on one: alike for the same global batch, else refused."""
    output, _, _ = broken
    with pytest.raises(UserError, match=f"in the middle of an epoch of {BATCHES} batches of 4 images"):
        train_alone(data, output, "broken", "--resume", "auto", "-b", "2")
    one = train_alone(data, output, "broken", "--resume", "auto", "-b", "4")
    assert_alike(one.rows, read_table(two))


def test_another_number_of_processes_starts_the_next_epoch(two, data, tmp_path):
    """At the end of an epoch any batch size and number of processes goes on."""
    more = ["--resume", str(two / "checkpoint-0.pth.tar"), "-b", "8"]
    rows = train_alone(data, tmp_path, "next", *more).rows
    assert [row["epoch"] for row in rows] == [0, 1]
