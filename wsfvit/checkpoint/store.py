"""Checkpoints of one run: saved in the background, verified when loaded, ranked by the metric.

Files in the run folder, all of them complete training states that ``load_state_dict_file`` also reads:

- ``last.pth.tar``: the newest state, at the end of an epoch or within one;
- ``last-previous.pth.tar``: the one before, in case the newest is damaged;
- ``checkpoint-EPOCH.pth.tar``: the epochs with the best metrics;
- ``model_best.pth.tar``: the best of all.

A state is written once; the other names are hard links to it (copies if the file system does not support links).
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

from wsfvit.checkpoint.integrity import find_damage, write_sealed
from wsfvit.checkpoint.io import read_checkpoint
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import write_atomic

LAST, PREVIOUS, BEST = "last.pth.tar", "last-previous.pth.tar", "model_best.pth.tar"


class CheckpointStore:
    """Save and load the training states of one run folder.

    ``save`` copies the state to CPU memory and returns; a thread writes the copy. The next ``save`` or ``wait`` first
    waits for that thread, so at most one write is pending, and raises its error.

    Args:
        folder: The run folder, which must exist.
        keep: Number of best epochs to keep.
        background: Write in a thread; otherwise before ``save`` returns.
        lower_is_better: Whether the lowest metric is the best.
    """

    def __init__(
        self, folder: str | os.PathLike[str], keep: int = 10, background: bool = True, lower_is_better: bool = False
    ) -> None:
        self.folder, self.keep, self.background, self.lower_is_better = Path(folder), keep, background, lower_is_better
        self.best_metric: float | None = None
        self.best_epoch: int | None = None  # the epoch of that metric
        self._top: list[tuple[float, int]] = []  # (metric, epoch), best first
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}
        self._last_is_damaged = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, content: Mapping[str, Any], *, epoch: int, batch: int = 0, metric: float | None = None) -> None:
        """Save a training state; later changes of ``content`` do not affect it.

        ``epoch``, ``batch``, ``metric`` (unless ``content`` has them) and the ranking of epochs are saved with it.

        Args:
            content: Dictionaries, lists and tuples of tensors and primitives (str, int, float, bool, None).
            epoch: The epoch that ended, or in which the state was taken.
            batch: Batches of that epoch that are done, for a state within it.
            metric: Ranks the epoch at its end; None saves only ``last.pth.tar``.

        Raises:
            UserError: This write (without ``background``) or the previous one failed.
            TypeError: ``content`` holds anything but tensors and primitives.
        """
        self.wait()
        added, removed = ([], []) if metric is None else self._rank(float(metric), epoch)
        ranking = {"best_metric": self.best_metric, "best_epoch": self.best_epoch, "top": self._top}
        described = {"epoch": epoch, "batch": batch, "metric": metric, **content, "ranking": ranking}
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
        """Wait until nothing is being written; a failed last write, which replaced no file, raises a ``UserError``."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def load_newest(self) -> tuple[dict[str, Any], Path] | None:
        """Load the newest intact checkpoint and restore the ranking stored in it. Each damaged file is logged.

        The result is the state, tensors on the CPU, and its file; None if the folder holds no checkpoint. If none of
        them can be read, a ``UserError`` is raised.
        """
        self.wait()
        damaged = []
        for path in self.files():
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
                f"no checkpoint in '{self.folder}' can be read ({', '.join(damaged)}): remove the folder to start again"
            )
        return None

    def restore(self, content: Mapping[str, Any]) -> None:
        """Restore the ranking from a checkpoint, dropping entries whose files are missing or hold another epoch."""
        ranking = content.get("ranking", {})  # files of other programs have none
        best = ranking if (self.folder / BEST).exists() else {}
        self.best_metric, self.best_epoch = best.get("best_metric"), best.get("best_epoch")
        top = map(tuple, ranking.get("top", []))
        self._top = [entry for entry in top if self._holds(self._epoch_file(entry[1]), entry)]

    def check_best(self) -> None:
        """Log a best checkpoint that is damaged or of another epoch; restore it from the other file of its epoch."""
        best, entry = self.folder / BEST, (self.best_metric, self.best_epoch)
        if self.best_epoch is None or self._holds(best, entry, whole=True):
            return
        other = self._epoch_file(self.best_epoch)
        if found := self._holds(other, entry, whole=True):
            _link(other, best)
        how = f"restored from {other.name}" if found else f"and {other.name} is no copy of it"
        print(f"warning: '{best}' is damaged or not of epoch {self.best_epoch}: {how}", flush=True)

    def _holds(self, path: Path, entry: tuple[Any, ...], whole: bool = False) -> bool:
        """Whether a file is the state of this metric and epoch, by its content; ``whole``: with intact tensors."""
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            same = (self._score(content["metric"]), content["epoch"]) == entry
            return same and not (whole and find_damage(path))
        except Exception:  # a damaged file raises almost any
            return False

    def _score(self, metric: float) -> float:
        """A metric that compares: NaN is the worst."""
        return (math.inf if self.lower_is_better else -math.inf) if math.isnan(metric) else metric

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / f"checkpoint-{epoch}.pth.tar"

    def files(self) -> list[Path]:
        """The checkpoints of the folder, newest first."""
        found = (re.fullmatch(r"checkpoint-(\d+)\.pth\.tar", path.name) for path in self.folder.glob("checkpoint-*"))
        epochs = sorted((int(match[1]) for match in found if match), reverse=True)
        paths = (self.folder / LAST, self.folder / PREVIOUS, *map(self._epoch_file, epochs), self.folder / BEST)
        return [path for path in paths if path.exists()]

    def _rank(self, metric: float, epoch: int) -> tuple[list[Path], list[Path]]:
        """Rank an epoch; returns the further names of its state besides ``last.pth.tar``, and the files to remove."""
        score = self._score(metric)
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

    def _copy(self, value: Any, key: tuple[Any, ...], seen: dict[Any, torch.Tensor]) -> Any:
        """Copy a state to CPU buffers that are reused, because allocating costs three times as much as copying."""
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
            # Only copies to pinned memory are asynchronous.
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
            # The best files first: the ranking in last.pth.tar must not name files that do not exist.
            for path in added:
                _link(temporary, path)
            if last.exists() and not self._last_is_damaged:
                os.replace(last, self.folder / PREVIOUS)
            os.replace(temporary, last)
            self._last_is_damaged = False
            for path in removed:
                path.unlink(missing_ok=True)

        try:
            write_atomic(last, lambda file: write_sealed(snapshot, file), publish)
        except (OSError, UserError) as err:
            hint = "; earlier checkpoints are unchanged: --resume auto continues from there"
            raise UserError(f"{err}{hint if os.path.exists(last) else ''}") from err


def _primitive(value: Any, key: tuple[Any, ...]) -> Any:
    """``value`` as a plain str, int, float, bool or None, also from derived classes (NumPy's float64)."""
    if value is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"a checkpoint holds tensors and primitives: {'.'.join(map(str, key))} is a {type(value).__name__}")


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, replacing the target; copy it if the file system does not support links."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)  # a killed process may have left one, possibly a link itself
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
