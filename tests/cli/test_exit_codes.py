"""Every training command that is asked to stop saves its state and ends with exit code 75."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from detection.tiny_detector import RECIPE
from tiny_run import TINY
from video.tiny import TINY as TINY_VIDEO

from wsfvit.detection.shapes import write_shapes
from wsfvit_cli import run_command

ROOT = Path(__file__).parents[2]
COMMON = ["--epochs", "50", "--log-interval", "1", "--experiment", "run"]


def commands(folder: Path) -> dict[str, list[str]]:
    return {
        "train": ["train.py", *TINY, "-b", "16", "--no-tensorboard"],
        "detection": ["-m", "wsfvit.detection", "train", str(folder), *RECIPE, "-b", "2", "-vb", "2"],
        "video": ["-m", "wsfvit", "video", "train", *TINY_VIDEO, "--no-tensorboard"],
    }


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("task", commands(Path()))
def test_a_stopped_training_ends_with_exit_code_75(task: str, tmp_path: Path) -> None:
    if task == "detection":
        for split in ("train", "val"):
            write_shapes(tmp_path / split, 6, (64, 64), seed=0)
    argv = [sys.executable, *commands(tmp_path)[task], *COMMON, "--output", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as run:
        lines = []
        for line in run.stdout or ():
            lines.append(line)
            if "[1/" in line and run.poll() is None:
                run.send_signal(signal.SIGTERM)
        run.wait(timeout=120)
    assert run.returncode == 75, "".join(lines)
    assert (tmp_path / "run" / "last.pth.tar").exists()


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return [pid, *(each for child, parent in parents.items() if parent == pid for each in tree(child))]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_signal_to_every_process_of_torchrun_is_one_request(tmp_path: Path) -> None:
    """The launcher passes its own signal on, so that every process gets two, dataloader workers included."""
    argv = [sys.executable, "scripts/launch.py", "--nproc-per-node", "2", "train.py", *TINY, "-j", "1", "-b", "16"]
    argv += [*COMMON, "--no-tensorboard", "--output", str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        lines = []
        for line in run.stdout or ():
            lines.append(line)
            if "[2/" in line:
                for pid in tree(run.pid):
                    os.kill(pid, signal.SIGTERM)
        run.wait(timeout=120)
    output = "".join(lines)
    assert run.returncode == 75 and "Traceback" not in output, output
    assert (tmp_path / "run" / "last.pth.tar").exists()


@pytest.mark.parametrize(
    ("result", "code"), [(None, 0), (0, 0), (1, 1), (SimpleNamespace(finished=False), 75), ({"x": 1}, 0)]
)
def test_the_result_of_a_command_is_its_exit_code(result: object, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsfvit.data.workers.STOP_SIGNALS", [])  # those of a stopped process would be ignored
    ended = 0
    try:
        run_command(argparse.ArgumentParser(), lambda args: result, [])
    except SystemExit as err:
        ended = err.code
    assert ended == code
