"""Dataloader workers that survive the signals which stop a run, until it has saved."""

import atexit
import signal
import weakref
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

# Seconds for the last step and its checkpoint; schedulers kill a run about as long after the signal.
GRACE_SECONDS = 30
_loaders: "weakref.WeakSet[DataLoader[Any]]" = weakref.WeakSet()


def end_workers_at_exit(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Shut down the persistent workers of ``loader`` at exit; returns ``loader``.

    Otherwise multiprocessing sends them SIGTERM, which they survive for ``GRACE_SECONDS``, and waits for them.
    """
    if not _loaders:
        # Handlers run in reverse order; multiprocessing registered its own when torch was imported.
        atexit.register(_end_workers)
    _loaders.add(loader)
    return loader


def _end_workers() -> None:
    for loader in list(_loaders):
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


def outlive_stop_signals(worker_id: int = 0) -> None:
    """Keep a worker alive for ``GRACE_SECONDS`` after SIGTERM, Ctrl-C or SIGUSR1; a second SIGTERM ends it.

    Terminals and schedulers signal every process of a run. The main process then finishes its step and saves, for which
    it needs its workers. To be called by ``DataLoader(worker_init_fn=...)``: torch sets its own SIGTERM handler when a
    worker starts.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(GRACE_SECONDS)
