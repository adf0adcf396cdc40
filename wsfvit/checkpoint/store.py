"""The checkpoints of one run: saved in the background, checked when read, ranked by the metric.

Files in the run folder, all of them whole training states that ``load_state_dict_file`` reads too:

- ``last.pth.tar``: the newest state, at the end of an epoch or within one;
- ``last-previous.pth.tar``: the one before, for the case that the newest is damaged;
- ``checkpoint-EPOCH.pth.tar``: the epochs with the best metrics;
- ``model_best.pth.tar``: the best of all.

A state is written once: the other names are hard links to it (copies where the file system has no links).
"""

import math
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wsfvit.checkpoint.integrity import write_sealed
from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import write_atomic

LAST, PREVIOUS, BEST = "last.pth.tar", "last-previous.pth.tar", "model_best.pth.tar"


class CheckpointStore:
    """Saves and finds the training states of one run folder.

    ``save`` copies the state into CPU memory and returns; a thread writes the copy. The next ``save`` and ``wait``
    first let that thread finish, so at most one write is pending, and pass on its error.

    Args:
        folder: The run folder; it exists.
        keep: Number of epochs of the best metrics to keep a file of.
        background: Write in a thread; False writes before ``save`` returns.
        lower_is_better: The metric is a loss.

    Attributes:
        best_metric: The best metric so far, or None.
        best_epoch: The epoch that had it, or None.
    """

    def __init__(
        self, folder: str | os.PathLike[str], keep: int = 10, background: bool = True, lower_is_better: bool = False
    ) -> None:
        self.folder, self.keep, self.background, self.lower_is_better = Path(folder), keep, background, lower_is_better
        self.best_metric: float | None = None
        self.best_epoch: int | None = None
        self._top: list[tuple[float, int]] = []  # (metric, epoch), best first
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}
        self._last_is_damaged = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, content: Mapping[str, Any], *, epoch: int, batch: int = 0, metric: float | None = None) -> None:
        """Saves a training state.

        What happens to ``content`` after the call does not change what is written. ``epoch``, ``batch`` and ``metric``
        are written with it (what ``content`` has under these names goes first), and so is the ranking of epochs.

        Args:
            content: Dictionaries, lists and tuples of tensors and primitives (str, int, float, bool, None).
            epoch: The epoch that has ended, or in which the state was taken.
            batch: Batches of that epoch that are done, for a state within it.
            metric: The figure that ranks the epoch, at its end; None saves ``last.pth.tar`` alone.

        Raises:
            UserError: this write (without ``background``) or the one before could not be completed.
            TypeError: ``content`` holds something else than tensors and primitives.
        """
        self.wait()
        added, removed = ([], []) if metric is None else self._rank(float(metric), epoch)
        described = {"epoch": epoch, "batch": batch, "metric": metric, **content, "ranking": self._ranking()}
        copied: dict[Any, torch.Tensor] = {}
        snapshot = self._copy(described, (), copied)
        for device in {source[0] for source in copied}:
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # the copies are queued, not done
        if self.background:
            self._thread = threading.Thread(target=self._write_in_thread, args=(snapshot, added, removed))
            self._thread.start()
        else:
            self._write(snapshot, added, removed)

    @property
    def is_writing(self) -> bool:
        """Whether a write is pending, so that ``save`` would have to wait."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
            UserError: the last write could not be completed; the files are those of the one before.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def load_newest(self) -> tuple[dict[str, Any], Path] | None:
        """Reads the newest state that is whole, and takes over its ranking; prints a line about each damaged one.

        Returns:
            The state, tensors on the CPU, and its file; None where the folder holds no checkpoint.

        Raises:
            UserError: there are checkpoints and none can be read.
        """
        self.wait()
        damaged = []
        for path in self._newest_first():
            try:
                content = read_checkpoint(path)
            except UserError as err:
                print(f"warning: {err}; trying the one before it", flush=True)
                damaged.append(path.name)
                continue
            self._last_is_damaged = LAST in damaged
            self.restore(content)
            return content, path
        if damaged:
            raise UserError(
                f"no checkpoint in '{self.folder}' can be read ({', '.join(damaged)}): remove the folder to start anew"
            )
        return None

    def restore(self, content: Mapping[str, Any]) -> None:
        """Takes over the ranking in a state, as far as this folder has the files it speaks of."""
        ranking = content.get("ranking", {})  # files of other programs have none
        known = (self.folder / BEST).exists()
        self.best_metric = ranking.get("best_metric") if known else None
        self.best_epoch = ranking.get("best_epoch") if known else None
        self._top = [(metric, epoch) for metric, epoch in ranking.get("top", []) if self._epoch_file(epoch).exists()]

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / f"checkpoint-{epoch}.pth.tar"

    def _newest_first(self) -> list[Path]:
        numbered = {}
        for path in self.folder.glob("checkpoint-*.pth.tar"):
            if match := re.fullmatch(r"checkpoint-(\d+)\.pth\.tar", path.name):
                numbered[int(match[1])] = path
        epochs = [numbered[epoch] for epoch in sorted(numbered, reverse=True)]
        return [
            path for path in (self.folder / LAST, self.folder / PREVIOUS, *epochs, self.folder / BEST) if path.exists()
        ]

    def _rank(self, metric: float, epoch: int) -> tuple[list[Path], list[Path]]:
        """Ranks an epoch; returns the names that its state gets besides ``last.pth.tar``, and the files to remove."""
        # A NaN would be neither better nor worse than anything.
        score = (math.inf if self.lower_is_better else -math.inf) if math.isnan(metric) else metric
        others = [entry for entry in self._top if entry[1] != epoch]
        ranked = sorted([*others, (score, epoch)], key=lambda entry: entry[0], reverse=not self.lower_is_better)
        self._top = ranked[: self.keep]
        added = []
        best = self.best_metric
        if best is None or (score < best if self.lower_is_better else score > best):
            self.best_metric, self.best_epoch = score, epoch
            added.append(self.folder / BEST)
        if (score, epoch) in self._top:
            added.append(self._epoch_file(epoch))
        return added, [self._epoch_file(dropped) for _, dropped in ranked[self.keep :]]

    def _ranking(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_epoch": self.best_epoch, "top": self._top}

    def _copy(self, value: Any, key: tuple[Any, ...], seen: dict[Any, torch.Tensor]) -> Any:
        """Copies a state into CPU memory that is kept for the next copy: fresh memory costs three times the copying."""
        if isinstance(value, torch.Tensor):
            value = value.detach()
            # Tied weights stay one tensor.
            same = (value.device, value.dtype, value.data_ptr(), value.shape, value.stride())
            if same not in seen:
                seen[same] = self._copy_tensor(value, key)
            return seen[same]
        if isinstance(value, Mapping):
            return {_primitive(name, key): self._copy(item, (*key, name), seen) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self._copy(item, (*key, index), seen) for index, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        return _primitive(value, key)

    def _copy_tensor(self, value: torch.Tensor, key: tuple[Any, ...]) -> torch.Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            # Only from pinned memory can the copies of many tensors follow each other without waiting.
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(value, non_blocking=value.is_cuda)

    def _write_in_thread(self, *args: Any) -> None:
        try:
            self._write(*args)
        except BaseException as err:
            self._error = err

    def _write(self, snapshot: dict[str, Any], added: list[Path], removed: list[Path]) -> None:
        last = self.folder / LAST

        def publish(temporary: Path) -> None:
            # The best ones first: the ranking in last.pth.tar must not speak of files that never came.
            for path in added:
                _link(temporary, path)
            if last.exists() and not self._last_is_damaged:
                os.replace(last, self.folder / PREVIOUS)
            os.replace(temporary, last)
            self._last_is_damaged = False
            for path in removed:
                path.unlink(missing_ok=True)

        try:
            for leftover in self.folder.glob(f".{LAST}.*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
            write_atomic(last, lambda file: write_sealed(snapshot, file), publish)
        except (OSError, UserError) as err:
            hint = "; the checkpoints before it are untouched: --resume auto goes on from there"
            raise UserError(f"{err}{hint if os.path.exists(last) else ''}") from err


def _primitive(value: Any, key: tuple[Any, ...]) -> Any:
    """A str, int, float, bool or None; of a class derived from one (NumPy's float64), its value."""
    if value is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"a checkpoint holds tensors and primitives: {'.'.join(map(str, key))} is a {type(value).__name__}")


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, in place of what had it before; a copy where the file system has no links."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)  # a process that was killed may have left one, and it may be a link itself
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
