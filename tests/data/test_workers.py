"""Dataloader workers that are stopped, killed or left alone, as processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from wsfvit.data import workers
from wsfvit.data.workers import WorkerLoader

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")


class Numbers(torch.utils.data.Dataset[int]):
    """The indices; reading number 3 sends a signal to the worker that reads it."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 3 and self.number:
            os.kill(os.getpid(), self.number)
        return index


@pytest.mark.parametrize("persistent", [True, False])
def test_passes_are_those_of_a_dataloader(persistent: bool) -> None:
    loader = WorkerLoader(Numbers(), batch_size=2, num_workers=2, persistent_workers=persistent)
    for _ in range(2):
        assert torch.cat(list(loader)).tolist() == list(range(8))


def test_a_killed_worker_is_one_line(error_of) -> None:
    line = error_of(lambda: list(WorkerLoader(Numbers(signal.SIGKILL), batch_size=2, num_workers=2)))
    assert line.startswith("error: DataLoader worker (pid") and line.endswith("pass fewer --workers)")


def test_a_stopped_worker_is_named_and_ended(monkeypatch, caplog) -> None:
    monkeypatch.setattr(workers, "STALL_SECONDS", 0.9)
    loader = WorkerLoader(Numbers(signal.SIGSTOP), batch_size=2, num_workers=2)
    passing = iter(loader)
    next(passing)
    loader.patience = 4
    pid = loader._latest()._workers[1].pid
    with pytest.raises(RuntimeError, match=rf"DataLoader worker \(pid(\(s\))? {pid}\)"):
        list(passing)
    messages = [message for message in caplog.messages if f"(pid {pid})" in message]
    assert "is it stopped" in messages[0] and messages[-1].endswith("s: ended, see --loader-timeout")


LEFT = """
import os, sys, time
from workers import WorkerLoader

class Slow(list):
    def __getitem__(self, index):
        time.sleep(60 * index)
        return index

passing = iter(WorkerLoader(Slow([0, 1]), batch_size=1, num_workers=2))
next(passing)
print(*[worker.pid for worker in __import__("multiprocessing").active_children()], flush=True)
os.kill(os.getpid(), 9)
"""


def test_workers_end_with_a_killed_parent_even_while_they_read() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(workers.__file__).parent)}
    left = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, env=environment, timeout=60)
    pids = left.stdout.split()
    assert len(pids) == 2, left.stderr
    until = time.monotonic() + 20
    while any(Path("/proc", pid).exists() for pid in pids):
        assert time.monotonic() < until, "workers outlive their parent"
        time.sleep(0.1)
