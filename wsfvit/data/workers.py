"""Dataloader workers: they survive the signals that stop a run, end with it, and are named where they stall."""

import atexit
import logging
import math
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

# Terminals, schedulers and torchrun send these to every process of a run, some of them twice.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
# Seconds without a batch until the worker that owes it is named.
STALL_SECONDS = 60.0

_logger = logging.getLogger(__name__)
_workers: "weakref.WeakSet[Any]" = weakref.WeakSet()


class WorkerLoader(DataLoader[Any]):
    """A ``DataLoader`` whose workers ignore the signals that stop a run and end when their parent does.

    The worker that owes the next batch is named after ``STALL_SECONDS`` and killed after ``patience`` seconds, unless
    that is 0. A worker that ends early is torch's RuntimeError, which ``run_main`` turns into one line.
    """

    def __init__(self, dataset: Any, patience: float = 0.0, **options: Any) -> None:
        super().__init__(dataset, worker_init_fn=start_worker, **options)
        self.patience, self._asked = patience, math.inf
        self._latest: Callable[[], Any] = lambda: None

    def _get_iterator(self) -> Any:
        # New workers inherit the mask: a signal must not end one before ``start_worker`` runs.
        masked = hasattr(signal, "pthread_sigmask")  # not on Windows
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if masked else ()
        try:
            iterator: Any = super()._get_iterator()
        finally:
            if masked:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._latest, self._asked = weakref.ref(iterator), time.monotonic()
        _workers.update(getattr(iterator, "_workers", ()))
        return iterator

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        over = threading.Event()
        if self.num_workers:
            threading.Thread(target=self._watch, args=(over,), daemon=True).start()
        try:
            self._asked = time.monotonic()
            for batch in super().__iter__():
                self._asked = math.inf
                yield batch
                self._asked = time.monotonic()
        finally:
            over.set()

    def _watch(self, over: threading.Event) -> None:
        """Until ``over``, name a worker that owes a batch for long, and kill it after ``patience``."""
        stall = STALL_SECONDS
        while not over.wait(0.5):
            waited = time.monotonic() - self._asked
            ended = 0 < self.patience < waited
            if (ended or waited > stall) and (iterator := self._latest()) is not None:
                stall *= 2
                task = iterator._task_info.get(iterator._rcvd_idx)  # none while a pass is beginning
                workers = [iterator._workers[task[0]]] if task else iterator._workers
                names = ", ".join(str(worker.pid) for worker in workers)
                end = "ended, see --loader-timeout" if ended else "is it stopped, or the data slow?"
                _logger.warning("no batch from dataloader worker (pid %s) for %.0f s: %s", names, waited, end)
                for worker in workers if ended else ():
                    worker.kill()
                    over.set()


def start_worker(worker_id: int = 0) -> None:
    """Let this worker ignore the signals that stop a run, and end with its parent; a ``worker_init_fn``."""
    ignore_stop_signals()  # only now: torch sets its own SIGTERM handler when a worker starts
    # torch looks for the parent between two batches only.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def ignore_stop_signals() -> None:
    """Ignore the signals that stop a run from now on; only in the main thread."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _end_workers() -> None:
    if _workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises
    for worker in list(_workers):
        worker.kill()


# Otherwise multiprocessing would send SIGTERM, which workers ignore, and wait for them. Handlers run in reverse order;
# multiprocessing registered its own when torch was imported.
atexit.register(_end_workers)
