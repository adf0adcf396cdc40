"""Logs that fail in the middle of a training: one warning each, and the training goes on."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import Points, Regression, parse

from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.train import loggers
from wsfvit.train.loggers import SteadyOutput
from wsfvit.train.trainer import run_task


class FullDisk:
    """A tracker, and everything else that writes, on a full disk."""

    def fail(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = finish = fail


@pytest.mark.parametrize("opened", [True, False])
def test_logs_on_a_full_disk_warn_once(opened: bool, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(loggers, "_tensorboard", lambda *args: FullDisk() if opened else FullDisk().fail())
    monkeypatch.setattr(loggers, "write_text_atomic", FullDisk().fail)
    monkeypatch.setattr("torchvision.utils.save_image", FullDisk().fail)

    class Drawn(Regression):
        def images(self, batch: Any) -> torch.Tensor:
            return torch.zeros(1, 3, 2, 2)

        def after_epoch(self, log: Any, update: int) -> None:
            FullDisk().fail()

    assert run_task(parse(tmp_path, "--save-images", "--log-interval", "1"), Drawn).finished
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert sorted(line.partition("without ")[2].partition(":")[0] for line in said) == [
        "--save-images", "TensorBoard", "figures of epochs", "summary.csv"
    ]  # fmt: skip
    assert all("No space left on device" in line for line in said)
    assert read_checkpoint(tmp_path / "plane" / "last.pth.tar")["position"]["epoch"] == 3


def test_a_run_directory_that_is_deleted_meanwhile(tmp_path: Path, capfd) -> None:
    """TensorBoard's thread fails, the checkpoints are written to a new directory."""

    class Deleted(Points):
        def __iter__(self) -> Iterator[Any]:
            for number, batch in enumerate(super().__iter__()):
                if (self.epoch, number) == (0, 2):
                    while (tmp_path / "plane").exists():  # threads write into it meanwhile
                        shutil.rmtree(tmp_path / "plane", ignore_errors=True)
                yield batch

    class Task(Regression):
        def build_loaders(self, model: Any) -> Any:
            return Deleted(), Points()

    assert run_task(parse(tmp_path, "--log-interval", "1"), Task).finished
    said = capfd.readouterr()
    assert said.out.count("warning") <= 1 and "Traceback" not in said.err
    assert (tmp_path / "plane" / "last.pth.tar").exists() and (tmp_path / "plane" / "summary.csv").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_on_a_full_disk_loses_its_lines(capfd) -> None:
    with open("/dev/full", "w") as stream:
        print("epoch 1", file=SteadyOutput(stream), flush=True)
        print("epoch 2", file=SteadyOutput(stream), flush=True)
    assert capfd.readouterr().err.count("without standard output: No space left on device") == 1


def test_a_closed_pipe_still_ends_the_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), os.fdopen(writing, "w") as stream:
        print("epoch 1", file=SteadyOutput(stream), flush=True)
