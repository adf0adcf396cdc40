"""Classification as a task: erasing, mixing and the loss of a batch, and what an epoch is judged by."""

from dataclasses import dataclass
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import nn

from wsfvit.eval.evaluate import evaluate
from wsfvit.factory.data import Loader
from wsfvit.train.task import Task
from wsfvit.utils.distributed import World

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Classification(Task):
    """Batches are images (B, C, H, W) and labels: (B,) from the loader, (B, K) once they are mixed.

    Attributes:
        criterion: Maps logits (B, K) and labels to the mean loss.
        erasing: Random erasing of a batch, or None.
        mixup: Mixup and CutMix, or None.
        mixup_off_epoch: Epoch from which batches are no longer mixed; 0 for never.
        layout: Memory format of the images.
        dtype: Data type of the weights and of the images.
    """

    criterion: nn.Module
    erasing: RandomErasing | None = None
    mixup: Mixup | None = None
    mixup_off_epoch: int = 0
    layout: torch.memory_format = torch.contiguous_format
    dtype: torch.dtype = torch.float32

    def begin_epoch(self, epoch: int) -> None:
        """Turns mixing on or off; off, it still makes the soft labels that the loss expects."""
        if self.mixup is not None:
            self.mixup.mixup_enabled = not 0 < self.mixup_off_epoch <= epoch

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        """Brings the batch to the device, erases and mixes it."""
        images, labels = (part.to(device, non_blocking=True) for part in batch)
        if self.erasing is not None:
            images = self.erasing(images)
        if self.mixup is not None:
            # Images are mixed in pairs; a batch can be odd where an unreadable image was left out.
            even = len(images) - len(images) % 2
            images, labels = self.mixup(images[:even], labels[:even])
        return images.to(self.dtype, memory_format=self.layout), labels

    def count(self, batch: Batch) -> int:
        return len(batch[0])

    def loss(self, forward: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images, labels = batch
        return self.criterion(forward(images), labels), {}

    def pictures(self, batch: Batch) -> torch.Tensor:
        return batch[0]


class MirrorMean(nn.Module):
    """A classifier whose logits are the mean over each image (B, C, H, W) and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        logits: torch.Tensor = (self.model(images) + self.model(images.flip(-1))) / 2
        return logits


@dataclass(frozen=True)
class ClassifierValidation:
    """Judges a classifier by a whole split; called as ``Plan.validate`` says.

    Attributes:
        amp_dtype: Mixed precision, or None.
        mirrored: Judge the mean of each image and its mirror image.
        log_interval: Batches between two progress lines.
    """

    world: World
    amp_dtype: torch.dtype | None
    layout: torch.memory_format
    mirrored: bool
    log_interval: int

    def __call__(self, model: nn.Module, loader: Loader, title: str) -> dict[str, Any]:
        """Returns val_loss, top1 and top5 (in percent)."""
        figures = evaluate(
            MirrorMean(model) if self.mirrored else model,
            loader,
            self.world.device,
            self.amp_dtype,
            self.layout,
            title,
            self.log_interval,
            world=self.world,
        )
        return {"val_loss": figures["loss"], "top1": figures["top1"], "top5": figures["top5"]}
