"""Progress of a loop: a bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


@dataclass(eq=False)
class Progress:
    """Show units (images) per second, the fraction of time spent waiting for data, time left, and the caller's values.

    Args:
        title: Title, e.g. ``epoch 3/10``.
        total: Number of batches.
        interval: Batches between two plain lines; a bar is drawn at every batch.
        first: Batches that an earlier run completed.
        shown: Whether to print; otherwise only count.
        epochs_left: Epochs that follow; if above 0, the time left of the whole run is also shown.
        epoch_seconds: Seconds per epoch for that estimate (0: from the pace of this loop).
        unit: Name of what is counted, in the plural.
    """

    title: str
    total: int
    interval: int
    _: KW_ONLY
    first: int = 0
    shown: bool = True
    epochs_left: int = 0
    epoch_seconds: float = 0.0
    unit: str = "images"

    def __post_init__(self) -> None:
        self.batches = self.count = 0
        self.waited = 0.0
        self.started = time.perf_counter()
        self.bar: Any = None
        # stderr, because the bar is drawn there; stdout may be a file.
        if self.shown and sys.stderr.isatty():
            self.bar = tqdm(total=self.total, initial=self.first, desc=self.title, unit="batch", leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield from ``items`` and add up the time spent waiting for them."""
        iterator = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - asked
            yield item

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def per_second(self) -> float:
        """Units per second since the start."""
        return self.count / self.seconds

    @property
    def data_wait(self) -> float:
        """Fraction of the time since the start that was spent waiting for data, from 0 to 1."""
        return self.waited / self.seconds

    @property
    def due(self) -> bool:
        """Whether the next ``step`` shows the caller's values."""
        done = self.first + self.batches + 1
        return done % self.interval == 0 or done == self.total

    def step(self, count: int, **figures: float) -> None:
        """Count one batch of ``count`` units and, when due, show ``figures``."""
        due = self.due
        self.batches += 1
        self.count += count
        if self.bar is not None:
            if due:
                self.bar.set_postfix_str(self._text(figures), refresh=False)
            self.bar.update()
        elif due and self.shown:
            place = f"[{self.first + self.batches}/{self.total}]"
            print(f"{self.title}  {place}  {self._text(figures)}  {self._time_left()}", flush=True)

    def _text(self, figures: dict[str, float]) -> str:
        rate = f"{self.per_second:.0f}" if self.per_second >= 10 else f"{self.per_second:.2g}"
        shown = {f"{self.unit}/s": rate} | {key: f"{value:.4g}" for key, value in figures.items()}
        if self.waited:
            shown["data"] = f"{self.data_wait:.0%}"
        return "  ".join(f"{key} {value}" for key, value in shown.items())

    def _time_left(self) -> str:
        per_batch = self.seconds / self.batches
        left = per_batch * max(self.total - self.first - self.batches, 0)
        text = f"{duration(left)} left"
        if self.epochs_left:
            run = left + self.epochs_left * (self.epoch_seconds or per_batch * self.total)
            text += f", {duration(run)} of the run"
        return text


def duration(seconds: float) -> str:
    """Seconds as ``12 s``, ``3:05 min`` or ``7:03:20 h``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
