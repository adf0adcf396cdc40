"""What a run learns: the one part of a training step that differs from task to task."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn


class Task(ABC):
    """How a batch becomes a loss: of classification, detection, video prediction, or a task of your own.

    Attributes:
        unit: What is counted, in the plural, for progress and tables.
    """

    unit = "images"

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  most tasks are the same in all epochs
        """Sets what depends on the epoch."""

    @abstractmethod
    def prepare(self, batch: Any, device: torch.device) -> Any:
        """Brings a batch of the loader to ``device`` and changes it at random; all generators are seeded for it."""

    @abstractmethod
    def count(self, batch: Any) -> int:
        """Number of units in a prepared batch."""

    @abstractmethod
    def loss(self, forward: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a prepared batch, under the run's mixed precision.

        Args:
            forward: The model, distributed or compiled; called once.
            batch: From ``prepare``.

        Returns:
            A scalar, the mean over the batch, and scalars to log beside it (parts of the loss), by name.
        """

    def pictures(self, batch: Any) -> torch.Tensor | None:
        """The images (N, C, H, W) of a prepared batch as the model sees them, for ``--save-images``."""
        return None
