"""Preemption: a signal requests a stop, the loop saves and ends."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

# EX_TEMPFAIL of sysexits.h: the state is saved, start the same command again. A launcher can act on it.
STOPPED_EXIT_CODE = 75
# Seconds in which a repeated Ctrl-C is the same one: torchrun passes on what the terminal sent to every process.
SAME_REQUEST_SECONDS = 5.0


class StopRequests:
    """Turn SIGTERM, SIGUSR1 and Ctrl-C into a request that the loop reads between two steps.

    Schedulers send SIGTERM (or what ``sbatch --signal`` names) some time before they kill a job. The loop reads
    ``requested`` after each step, saves, and ends the process with ``STOPPED_EXIT_CODE``. Repeated signals are the same
    request; a Ctrl-C more than ``SAME_REQUEST_SECONDS`` after the first raises ``KeyboardInterrupt`` at once. Signals
    can only be caught in the main thread; elsewhere nothing is ever requested.
    """

    def __init__(self) -> None:
        self.reason = ""  # name of the first signal that came, e.g. SIGTERM
        self._interrupted = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether a signal has asked the run to save and end."""
        return bool(self.reason)

    def __enter__(self) -> "StopRequests":
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            names = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
            for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python; the default is the nearest to it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked process inherits the handlers but takes no steps; Ctrl-C and SIGUSR1 are handled by the run.
            if number == signal.SIGTERM:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
            return
        if number == signal.SIGINT:
            self._interrupted = self._interrupted or time.monotonic()
            if time.monotonic() - self._interrupted > SAME_REQUEST_SECONDS:
                raise KeyboardInterrupt
        if not self.reason:
            self.reason = signal.Signals(number).name
            again = f"; Ctrl-C after {SAME_REQUEST_SECONDS:.0f} s stops unsaved" if number == signal.SIGINT else ""
            with contextlib.suppress(OSError):  # Not print: the signal may have come in the middle of one.
                os.write(2, f"\n{self.reason}: saving after this step, then stopping{again}\n".encode())
