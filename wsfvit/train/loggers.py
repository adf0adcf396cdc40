"""Logs of a run: summary.csv, TensorBoard, Weights & Biases, Trackio, images of its batches, standard output.

None of them ends a training: one that fails, on a full disk for example, is a warning.
"""

import argparse
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from wsfvit.utils.errors import first_line, import_optional
from wsfvit.utils.files import write_text_atomic
from wsfvit.utils.tables import csv_text


class RunLog:
    """Write the figures of a run to its directory ``folder``; only the main process has one.

    ``described`` are the arguments of the training command as primitives, for Weights & Biases and Trackio, and
    ``num_updates`` is the update that a resumed run continues at: later figures of the earlier run are hidden. A
    package that was asked for and is not installed raises a ``UserError``.
    """

    def __init__(self, folder: Path, args: argparse.Namespace, described: dict[str, Any], num_updates: int = 0) -> None:
        self.folder = folder
        self.save_images = args.save_images
        self._failed: set[str] = set()
        self.trackers: dict[str, Any] = {}  # all have log(figures, step=) and finish()
        trackers: dict[str, tuple[bool, Callable[[], Any]]] = {
            "TensorBoard": (not args.no_tensorboard, lambda: _tensorboard(folder, num_updates)),
            "Weights & Biases": (args.log_wandb, lambda: _wandb(args, folder, described)),
            "Trackio": (args.log_trackio, lambda: _trackio(args, folder, described, resumed=num_updates > 0)),
        }
        for name, (wanted, create) in trackers.items():
            if wanted:
                with self.attempt(name):
                    self.trackers[name] = create()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Turn an error of the block into a warning, the first time that ``name`` fails, and switch a tracker off."""
        try:
            yield
        except Exception as err:
            if isinstance(err.__cause__, ImportError):
                raise
            if name not in self._failed:
                print(f"warning: from here on without {name}: {first_line(err)}", flush=True)
            self._failed.add(name)
            self.trackers.pop(name, None)

    def log_update(self, update: int, figures: dict[str, float]) -> None:
        """Log figures of the training loop after ``update`` optimizer updates."""
        self._log({f"train/{key}": value for key, value in figures.items()}, update)

    def log_epoch(self, update: int, rows: list[dict[str, Any]]) -> None:
        """Rewrite summary.csv and log its last row."""
        with self.attempt("summary.csv"):
            write_text_atomic(self.folder / "summary.csv", csv_text(rows, ".6g"))
        self._log({f"epoch/{key}": value for key, value in rows[-1].items()}, update)

    def log_images(self, images: torch.Tensor | None, epoch: int, batch: int) -> None:
        """Write a batch (B, C, H, W) as one image file, if ``--save-images`` is on."""
        if not self.save_images or images is None:
            return
        from torchvision.utils import save_image

        with self.attempt("--save-images"):
            save_image(images.float(), self.folder / f"train-{epoch}-{batch}.png", normalize=True, scale_each=True)

    def log_image(self, name: str, image: torch.Tensor, update: int) -> None:
        """Log an image (C, H, W), float in [0, 1] or uint8, to TensorBoard."""
        if (board := self.trackers.get("TensorBoard")) is not None:
            with self.attempt("TensorBoard"):
                board.add_image(name, image, update)

    def close(self) -> None:
        """Flush and close all logs."""
        for name, tracker in list(self.trackers.items()):
            with self.attempt(name):
                tracker.finish()

    def _log(self, figures: dict[str, float], update: int) -> None:
        for name, tracker in list(self.trackers.items()):
            with self.attempt(name):
                tracker.log(figures, step=update)


class SteadyOutput:
    """A standard output whose lines are left out once it cannot be written; a closed pipe still raises."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as err:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # takes what is buffered, too
            with suppress(OSError):
                os.write(2, f"warning: from here on without standard output: {err.strerror}\n".encode())


def _tensorboard(folder: Path, num_updates: int) -> Any:
    advice = "TensorBoard is not installed: pip install tensorboard, or pass --no-tensorboard"
    tensorboard = import_optional("torch.utils.tensorboard", advice)
    report = threading.excepthook  # the writer's thread keeps its error for the next call
    threading.excepthook = lambda args: None if type(args.thread).__name__ == "_AsyncWriterThread" else report(args)
    writer = tensorboard.SummaryWriter(str(folder), purge_step=num_updates + 1 if num_updates else None)
    writer.finish = writer.close
    writer.log = lambda figures, step: [writer.add_scalar(key, value, step) for key, value in figures.items()]
    return writer


def _wandb(args: argparse.Namespace, folder: Path, described: dict[str, Any]) -> Any:
    advice = "Weights & Biases is not installed: pip install wandb, or leave out --log-wandb"
    wandb = import_optional("wandb", advice)
    resumed = {"id": args.wandb_resume_id, "resume": "must"} if args.wandb_resume_id else {}
    return wandb.init(
        project=args.wandb_project, name=folder.name, dir=str(folder), tags=args.wandb_tags, config=described, **resumed
    )


def _trackio(args: argparse.Namespace, folder: Path, described: dict[str, Any], resumed: bool) -> Any:
    trackio = import_optional("trackio", "Trackio is not installed: pip install trackio, or leave out --log-trackio")
    trackio.init(
        project=args.trackio_project, name=folder.name, config=described, resume="allow" if resumed else "never"
    )
    return trackio
