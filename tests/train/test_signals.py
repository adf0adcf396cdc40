"""Requests to stop: real signals, sent to this process and to a run of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wsfvit.data import workers
from wsfvit.train import signals
from wsfvit.train.signals import STOPPED_EXIT_CODE, StopRequests

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")

# The modules by themselves: importing the package with them takes seconds.
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(m.__file__).parent) for m in (signals, workers))}

RUN = """
import sys, time
from signals import STOPPED_EXIT_CODE, StopRequests
with StopRequests() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
print("saved after", stop.reason)
sys.exit(STOPPED_EXIT_CODE)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_signal_is_a_request(name, capfd):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopRequests() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == name
    assert signal.getsignal(number) is before
    assert f"{name}: saving after this step, then stopping" in capfd.readouterr().err


def test_first_reason_stays_and_repeated_schedulers_signals_do_no_harm():
    with StopRequests() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.reason == "SIGUSR1"


def test_repeated_interrupt_is_the_same_request():
    """torchrun passes on the Ctrl-C that the terminal has sent to every process."""
    with StopRequests() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"


def test_later_interrupt_stops_at_once(monkeypatch):
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequests() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the first Ctrl-C, though not the first signal
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second Ctrl-C did not interrupt")
    assert signal.getsignal(signal.SIGINT) is before


def test_no_op_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with StopRequests() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


def test_forked_process_heeds_sigterm_alone():
    with StopRequests() as stop:
        child = os.fork()
        if child == 0:
            while True:
                time.sleep(1)
        try:
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGUSR1):
                os.kill(child, number)
            time.sleep(0.1)
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        finally:
            os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        assert not stop.requested


GROUP = """
import os, signal, sys, time
import torch
from workers import WorkerLoader
from signals import STOPPED_EXIT_CODE, StopRequests

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        time.sleep(0.01)
        return index

with StopRequests() as stop:
    seen = []
    for batch in WorkerLoader(Slow(), batch_size=2, num_workers=2):
        seen += batch.tolist()
        if len(seen) in (10, 20):
            os.killpg(0, signal.SIGTERM)
print(len(seen), stop.reason)
sys.exit(STOPPED_EXIT_CODE if stop.requested else 1)
"""


def test_workers_serve_on_when_the_whole_group_is_signalled():
    done = subprocess.run(
        [sys.executable, "-c", GROUP], capture_output=True, text=True, env=ENV, start_new_session=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (STOPPED_EXIT_CODE, "40 SIGTERM\n"), done.stderr


def test_a_run_ends_with_its_exit_code():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen([sys.executable, "-c", RUN], text=True, env=ENV, **pipes)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=20)
    assert run.returncode == STOPPED_EXIT_CODE == 75
    assert out == "saved after SIGTERM\n" and err.strip().startswith("SIGTERM: saving")
