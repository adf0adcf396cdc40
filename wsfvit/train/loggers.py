"""Logs of a run: summary.csv, TensorBoard, Weights & Biases, Trackio, images of its batches."""

import argparse
from pathlib import Path
from typing import Any

import torch

from wsfvit.utils.errors import import_optional
from wsfvit.utils.files import write_text_atomic
from wsfvit.utils.tables import csv_text


class RunLog:
    """Write the figures of a run; only the main process has one.

    Args:
        folder: The run directory.
        args: Arguments of the training command.
        described: The same as primitives, for Weights & Biases and Trackio.
        num_updates: Where a resumed run continues; later figures of the earlier run are hidden.

    Raises:
        UserError: a package that was asked for is not installed.
    """

    def __init__(self, folder: Path, args: argparse.Namespace, described: dict[str, Any], num_updates: int = 0) -> None:
        self.folder = folder
        self.save_images = args.save_images
        self.writer = None if args.no_tensorboard else _tensorboard(folder, num_updates)
        # Both have log(figures, step=) and finish().
        self.trackers = [_wandb(args, folder, described)] if args.log_wandb else []
        if args.log_trackio:
            self.trackers.append(_trackio(args, folder, described, resumed=num_updates > 0))

    def log_update(self, update: int, figures: dict[str, float]) -> None:
        """Log figures of the training loop after ``update`` optimizer updates."""
        self._log({f"train/{key}": value for key, value in figures.items()}, update)

    def log_epoch(self, update: int, rows: list[dict[str, Any]]) -> None:
        """Rewrite summary.csv and log its last row."""
        write_text_atomic(self.folder / "summary.csv", csv_text(rows, ".6g"))
        self._log({f"epoch/{key}": value for key, value in rows[-1].items()}, update)

    def log_images(self, images: torch.Tensor | None, epoch: int, batch: int) -> None:
        """Write a batch (B, C, H, W) as one image file, if ``--save-images`` is on."""
        if not self.save_images or images is None:
            return
        from torchvision.utils import save_image

        save_image(images.float(), self.folder / f"train-{epoch}-{batch}.png", normalize=True, scale_each=True)

    def log_image(self, name: str, image: torch.Tensor, update: int) -> None:
        """Log an image (C, H, W), float in [0, 1] or uint8, to TensorBoard."""
        if self.writer is not None:
            self.writer.add_image(name, image, update)

    def close(self) -> None:
        """Flush and close all logs."""
        if self.writer is not None:
            self.writer.close()
        for tracker in self.trackers:
            tracker.finish()

    def _log(self, figures: dict[str, float], update: int) -> None:
        if self.writer is not None:
            for key, value in figures.items():
                self.writer.add_scalar(key, value, update)
        for tracker in self.trackers:
            tracker.log(figures, step=update)


def _tensorboard(folder: Path, num_updates: int) -> Any:
    advice = "TensorBoard is not installed: pip install tensorboard, or pass --no-tensorboard"
    tensorboard = import_optional("torch.utils.tensorboard", advice)
    return tensorboard.SummaryWriter(str(folder), purge_step=num_updates + 1 if num_updates else None)


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
