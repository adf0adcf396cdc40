"""Progress of a loop: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Shows images per second, time left and the caller's figures.

    Args:
        title: What is running, e.g. ``epoch 3/10``.
        total: Number of batches.
        interval: Batches between two plain lines; a bar is drawn at every batch.
    """

    def __init__(self, title: str, total: int, interval: int) -> None:
        self.title, self.total, self.interval = title, total, interval
        self.batches = self.images = 0
        self.started = time.perf_counter()
        # Asked of stderr, because that is where the bar goes; stdout may be a file either way.
        self.bar = tqdm(total=total, desc=title, unit="batch", leave=False) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def images_per_s(self) -> float:
        """Images per second since the start."""
        return self.images / self.seconds

    def step(self, images: int, **figures: float) -> None:
        """Counts one batch of ``images`` and shows ``figures`` with it."""
        self.batches += 1
        self.images += images
        shown = {"images/s": f"{self.images_per_s:.0f}"} | {key: f"{value:.4g}" for key, value in figures.items()}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()
        elif self.batches % self.interval == 0 or self.batches == self.total:
            left = self.seconds / self.batches * max(self.total - self.batches, 0)
            text = "  ".join(f"{key} {value}" for key, value in shown.items())
            print(f"{self.title}  [{self.batches}/{self.total}]  {text}  {left:.0f} s left", flush=True)
