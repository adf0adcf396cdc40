"""Training state: everything that changes during training, saved to and restored from checkpoints."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.batchnorm import _NormBase

from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError, first_line

# Counts of skipped updates.
SKIPPED = ("bad_steps", "bad_in_a_row", "overflows")


@dataclass
class TrainState:
    """State of a run. Random generators are not part of it: each batch derives its own seed."""

    model: nn.Module  # unwrapped; its weights are saved
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    scaler: GradScaler
    ema: ModelEmaV3 | None
    wrapped: nn.Module | None = None  # ``model`` distributed or compiled
    epoch: int = 0  # the epoch being trained, counted from 0
    batch: int = 0  # the next batch of that epoch on each process; at a save, the first one of an update
    num_updates: int = 0  # optimizer updates so far, including skipped ones; the EMA's step count
    # Loss (a scalar on the device) and number of images of each batch since the last update.
    group: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    # Sum of the loss over the images that this process trained on in the epoch so far, without skipped updates.
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    images: int = 0  # number of these images
    bad_steps: int = 0  # updates skipped because a loss or the gradient was not finite
    bad_in_a_row: int = 0  # how many of them came last in a row
    overflows: int = 0  # updates skipped because float16's loss scale was too high, which happens in every run
    lr: float = 0.0  # of the last update
    rows: list[dict[str, Any]] = field(default_factory=list)  # lines of summary.csv, one per finished epoch

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        # MPS has no float64; its sum of an epoch is a figure to look at all the same.
        self.loss_sum = self.loss_sum.to(device, torch.float32 if device.type == "mps" else torch.float64)
        self._statistics = running_statistics(self.model)
        self._kept = [value.clone() for value in self._statistics]

    @property
    def forward(self) -> nn.Module:
        """The model to call for the loss."""
        return self.model if self.wrapped is None else self.wrapped

    def keep_statistics(self) -> None:
        """Copy the running statistics of the norm layers, for ``refuse_group`` to restore."""
        if self._kept:
            torch._foreach_copy_(self._kept, self._statistics)

    def begin_group(self) -> None:
        """Clear the gradients and losses since the last update."""
        self.optimizer.zero_grad(set_to_none=True)
        self.group.clear()

    def accept_group(self) -> None:
        """Count the batches since the last update as trained on."""
        for loss, images in self.group:
            self.loss_sum.add_(loss, alpha=images)
            self.images += images
        self.bad_in_a_row = 0
        self.keep_statistics()

    def refuse_group(self) -> None:
        """Count a skipped update and restore the running statistics, in which a NaN would stay permanently."""
        self.bad_steps += 1
        self.bad_in_a_row += 1
        if self._kept:
            torch._foreach_copy_(self._statistics, self._kept)

    def begin_epoch(self, epoch: int) -> None:
        """Move to the first batch of ``epoch``."""
        self.epoch, self.batch, self.images = epoch, 0, 0
        self.loss_sum.zero_()

    def state_dict(self, world: World) -> dict[str, Any]:
        """Tensors and primitives for ``load_state_dict``; every process of ``world`` must call it."""
        content = {
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "scheduler": _scheduler_state(self.scheduler),
            "num_updates": self.num_updates,
            "position": {"epoch": self.epoch, "batch": self.batch, "lr": self.lr},
            "loss_sums": world.gather([self.loss_sum.item(), self.images]),
            "skipped": {key: getattr(self, key) for key in SKIPPED},
            "rows": [dict(row) for row in self.rows],
        }
        if self.ema is not None:
            content["state_dict_ema"] = self.ema.module.state_dict()
        if world.size > 1:
            content["rank_buffers"] = world.gather([_float_buffers(module, device="cpu") for module in self.modules()])
        return content

    def modules(self) -> list[nn.Module]:
        """The model, and the EMA model where there is one."""
        return [self.model] if self.ema is None else [self.model, self.ema.module]

    def load_state_dict(self, content: dict[str, Any], world: World, optimizer: bool = True) -> None:
        """Restore what ``state_dict`` returned; ``optimizer`` False leaves out optimizer, scaler and schedule.

        Content without a training state, or not of this model and optimizer, raises a ``UserError``.
        """
        missing = [key for key in ("state_dict", "optimizer", "position", "loss_sums", "rows") if key not in content]
        if missing:
            raise UserError(f"it holds no training state (no {', '.join(missing)}): start with --initial-checkpoint")
        try:
            self.model.load_state_dict(content["state_dict"])
            if self.ema is not None:
                self.ema.module.load_state_dict(content.get("state_dict_ema") or content["state_dict"])
            if optimizer:
                _check_shapes(content["state_dict"], self.model)
                self.optimizer.load_state_dict(content["optimizer"])
                self.scaler.load_state_dict(content["scaler"])
                _load_scheduler_state(self.scheduler, content["scheduler"])
        except (KeyError, RuntimeError, ValueError) as err:
            raise UserError(f"it does not fit this run: {first_line(err)}") from err
        position = content["position"]
        self.epoch, self.batch, self.lr = position["epoch"], position["batch"], position["lr"]
        self.num_updates = content["num_updates"]
        self.rows = [dict(row) for row in content["rows"]]
        for key in SKIPPED:
            setattr(self, key, content.get("skipped", {}).get(key, 0))
        sums = content["loss_sums"]
        if len(sums) != world.size:  # the totals are the same, whoever holds them
            sums = [[math.fsum(loss for loss, _ in sums), sum(images for _, images in sums)]] + [[0.0, 0]] * world.size
        loss_sum, self.images = sums[world.rank]
        self.loss_sum.fill_(loss_sum)
        buffers = content.get("rank_buffers", [])
        if len(buffers) == world.size and world.size > 1:  # else all continue with those of rank 0
            for module, saved in zip(self.modules(), buffers[world.rank], strict=False):
                for key, value in _float_buffers(module).items():
                    value.copy_(saved[key])


def _check_shapes(saved: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Refuse weights that were resized on loading: the optimizer's moments were not, and its next step would fail."""
    for name, parameter in model.named_parameters():
        if saved[name].shape != parameter.shape:
            was, now = ("x".join(map(str, tensor.shape)) for tensor in (saved[name], parameter))
            raise UserError(
                f"{name} is {was} there and {now} here, and the optimizer's state cannot be resized: keep the image "
                "size, or pass --no-resume-opt"
            )


def _float_buffers(module: nn.Module, device: str | None = None) -> dict[str, torch.Tensor]:
    """Floating-point buffers of the state dict (BatchNorm statistics, which differ between processes within an epoch),
    moved to ``device`` if one is named."""
    saved = module.state_dict().keys()
    found = {key: value for key, value in module.named_buffers() if key in saved and value.is_floating_point()}
    return found if device is None else {key: value.to(device) for key, value in found.items()}


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Running means and variances of the norm layers: what a forward pass changes in training."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [value for module in norms for value in module.buffers(False) if value.is_floating_point()]


def _scheduler_state(scheduler: Scheduler | None) -> dict[str, Any]:
    """timm's schedules are functions of the epoch or update count, except plateau, whose state is torch's."""
    inner = getattr(scheduler, "lr_scheduler", None)
    if inner is None:
        return {}
    kept = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
    return {key: getattr(inner, key) for key in kept} | {"restore_lr": scheduler.restore_lr}  # type: ignore[union-attr]


def _load_scheduler_state(scheduler: Scheduler | None, state: dict[str, Any]) -> None:
    inner = getattr(scheduler, "lr_scheduler", None)
    for key, value in state.items() if inner is not None else ():
        setattr(scheduler if key == "restore_lr" else inner, key, value)
