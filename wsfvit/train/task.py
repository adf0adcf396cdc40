"""Interface of a training task: what differs between classification, detection, video prediction and your own."""

import argparse
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from timm.scheduler.scheduler import Scheduler
from torch import nn

from wsfvit.factory import recipe
from wsfvit.factory.data import Loader
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError

if TYPE_CHECKING:  # both know tasks
    from wsfvit.train.loggers import RunLog
    from wsfvit.train.trainer import Trainer


class Task(ABC):
    """A model with its data, loss and metric, trained by ``Trainer``.

    The trainer calls ``build_model``, ``build_loaders``, ``build_optimizer`` and ``build_scheduler`` once, in this
    order. What a task needs later it keeps as attributes of its own. ``args`` are the arguments of the training
    command: at least those that ``wsfvit.cli.run`` lists.
    """

    unit = "images"  # what a batch holds, in the plural, for progress and tables
    metric = "val_loss"  # column of summary.csv that selects the best checkpoint; a key of ``evaluate``'s result
    lower_is_better = False  # whether the best checkpoint has the lowest metric
    trivial: tuple[str, ...] = ()  # columns that are not printed, such as the top-5 accuracy among five classes

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        self.args, self.world = args, world

    @abstractmethod
    def build_model(self, start: bool) -> nn.Module:
        """Build the model on the CPU in float32, with the weights to ``start`` from unless a run is resumed.

        Raise a ``UserError`` where the arguments do not fit each other or the data.
        """

    @abstractmethod
    def build_loaders(self, model: Any) -> tuple[Loader, Loader]:
        """Build the training and the validation loader of this process.

        Both have ``len`` (batches of an epoch) and ``bad_images`` (names of skipped ones). The training loader also
        has ``set_position(epoch, batch)`` and ``batch_indices(batch)``, as ``wsfvit.data.TrainLoader``.
        """

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer; default: timm's, without weight decay on biases and norms."""
        return recipe.build_optimizer(self.args, model)

    def build_scheduler(self, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> tuple[Scheduler | None, int]:
        """Build the learning rate schedule (None for a constant rate); also return the number of epochs."""
        return recipe.build_scheduler(self.args, optimizer, updates_per_epoch)

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  most tasks are the same in all epochs
        """Set what depends on the epoch."""

    @abstractmethod
    def prepare(self, batch: Any, device: torch.device) -> Any:
        """Move a batch of the training loader to ``device`` and augment it; all random generators are seeded."""

    @abstractmethod
    def count(self, batch: Any) -> int:
        """Number of units in a prepared batch."""

    @abstractmethod
    def loss(self, forward: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss of a prepared batch, under the run's mixed precision.

        ``forward`` is the model, distributed or compiled; call it once. The result is a scalar, the mean over the
        batch, and scalars to log beside it by name.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, loader: Loader, title: str) -> dict[str, float]:
        """Evaluate a model in eval mode on the validation loader; called in every process.

        The model is the EMA where there is one on the device, else the trained one; ``title`` is of the progress line.
        The result is columns of summary.csv, equal in all processes.
        """

    def name(self) -> str:
        """Name of the run directory where ``--experiment`` is not given."""
        return type(self).__name__.lower()

    def title(self) -> str:
        """Model and data in a few words, for the first line of the log."""
        return self.name()

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must contain, besides weights, to be used without the run; primitives only."""
        return {"task": type(self).__name__.lower()}

    def counts(self) -> dict[str, int]:
        """Numbers that must be equal in all processes, by name."""
        return {}

    def images(self, batch: Any) -> torch.Tensor | None:
        """Images (N, C, H, W) of a prepared batch as the model sees them, for ``--save-images``."""
        return None

    def after_epoch(self, log: "RunLog", update: int) -> None:  # noqa: B027
        """Log figures of the epoch; called in the main process after its row is logged."""

    def at_end(self, trainer: "Trainer") -> None:  # noqa: B027
        """Final evaluation; called in every process when all epochs are done."""


def refuse_classifier_flags(args: argparse.Namespace) -> None:
    """Refuse the flags of a training command that only classifiers support."""
    if args.model_dtype not in (None, "float32"):
        raise UserError(f"these weights stay in float32: pass --amp instead of --model-dtype {args.model_dtype}")
    if args.layer_decay is not None:
        raise UserError("--layer-decay is for image classifiers: leave it out")
