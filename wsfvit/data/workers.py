"""Loading processes that outlive the signals which ask the whole run to stop."""

import atexit
import signal
import weakref
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

# Seconds that remain for the last step and its checkpoint; schedulers give the run about as long before they kill it.
GRACE_SECONDS = 30


_loaders: "weakref.WeakSet[DataLoader[Any]]" = weakref.WeakSet()


def end_workers_at_exit(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Returns ``loader``, whose persistent workers end before the process does, even where nothing has dropped it.

    Otherwise multiprocessing ends them by a SIGTERM, which they outlive for ``GRACE_SECONDS``, and waits for them.
    """
    if not _loaders:
        # What is registered last runs first, and multiprocessing registered when torch was imported.
        atexit.register(_end_workers)
    _loaders.add(loader)
    return loader


def _end_workers() -> None:
    for loader in list(_loaders):
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


def outlive_stop_signals(worker_id: int = 0) -> None:
    """Lets a loading process serve on for a while after SIGTERM, Ctrl-C or SIGUSR1; a second SIGTERM ends it.

    Terminals and schedulers send these to every process of a run. The main process answers them by finishing its step
    and saving, for which it needs its workers; one that died would end the run unsaved.

    Args:
        worker_id: Not used; ``DataLoader(worker_init_fn=...)`` passes it. To be called there and not before: torch sets
            its own handler for SIGTERM when a worker starts.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(GRACE_SECONDS)
