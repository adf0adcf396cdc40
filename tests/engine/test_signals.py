"""Requests to stop: real signals, sent to this process and to a run of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wsfvit.engine import signals
from wsfvit.engine.signals import STOPPED_EXIT_CODE, StopRequests

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")

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


def test_second_interrupt_stops_at_once(capfd):
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


def test_forked_worker_serves_on_and_ends_at_the_second_signal():
    with StopRequests() as stop:
        worker = os.fork()
        if worker == 0:
            while True:
                time.sleep(1)
        try:
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
                os.kill(worker, number)
                time.sleep(0.1)
            assert os.waitpid(worker, os.WNOHANG) == (0, 0)
            os.kill(worker, signal.SIGTERM)
            status = os.waitpid(worker, 0)[1]
        except BaseException:
            os.kill(worker, signal.SIGKILL)
            raise
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not stop.requested


def test_a_run_ends_with_its_exit_code():
    # The module by itself: importing the package with it takes seconds.
    env = {**os.environ, "PYTHONPATH": str(Path(signals.__file__).parent)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen([sys.executable, "-c", RUN], text=True, env=env, **pipes)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=20)
    assert run.returncode == STOPPED_EXIT_CODE == 75
    assert out == "saved after SIGTERM\n" and err.strip().startswith("SIGTERM: saving")
