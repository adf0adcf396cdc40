"""The training loop: one epoch, batch by batch, on one of one or more processes."""

import itertools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from torch import nn

from wsfvit.data.seeding import seed_all
from wsfvit.engine.build import Loader
from wsfvit.engine.distributed import World
from wsfvit.engine.evaluate import autocast
from wsfvit.engine.progress import Progress
from wsfvit.engine.state import TrainState
from wsfvit.errors import UserError


@dataclass(frozen=True)
class StepConfig:
    """What an optimizer update needs to know and that does not change.

    Attributes:
        world: The processes that train together; batches and groups are those of one process.
        amp_dtype: Mixed precision, or None.
        model_dtype: Data type of the weights and of the images.
        erasing: Random erasing of a batch, or None.
        mixup_off_epoch: Epoch from which batches are no longer mixed; 0 for never.
        epochs: Number of epochs in all.
        grad_accum_steps: Batches whose gradients make one update; the last update of an epoch may have fewer.
        synchronize: Wait for the device after every update.
    """

    world: World
    layout: torch.memory_format
    amp_dtype: torch.dtype | None
    model_dtype: torch.dtype
    loss: nn.Module
    erasing: RandomErasing | None
    mixup: Mixup | None
    mixup_off_epoch: int
    epochs: int
    seed: int
    grad_accum_steps: int
    clip_grad: float | None
    clip_mode: str
    synchronize: bool
    log_interval: int


class LoopEvents:
    """What the loop tells its caller; the methods here do nothing.

    ``figures`` are loss (mean of the epoch so far), lr, images_per_s, grad_norm where gradients are clipped by norm,
    and peak_gib (memory) on CUDA.
    """

    def on_log(self, state: TrainState, images: torch.Tensor, figures: dict[str, float]) -> None:
        """A progress line is due; ``images`` (B, C, H, W) are the batch as the model saw it."""

    def on_update(self, state: TrainState) -> bool:
        """An update is done and ``state`` can be saved; True ends the epoch here."""
        return False


def train_one_epoch(
    state: TrainState, loader: Loader, cfg: StepConfig, events: LoopEvents | None = None, epoch_seconds: float = 0.0
) -> dict[str, Any]:
    """Trains from ``state.batch`` on to the end of the epoch.

    Args:
        state: Changed in place; ``state.batch`` counts on.
        loader: Yields the remaining batches, images (B, C, H, W) and labels (B,); its length counts the whole epoch.
        cfg: The fixed part.
        events: Told of updates and log points.
        epoch_seconds: What an epoch took so far, validation included, for the time left of the run; 0 if unknown.

    Returns:
        ``loss`` (mean over the images of all processes), ``lr`` (of the last update), ``images_per_s`` (of all
        processes) and ``finished`` (False where ``events`` ended the epoch).

    Raises:
        UserError: a loss that is not finite.
    """
    events = events or LoopEvents()
    state.forward.train()
    if cfg.mixup is not None:  # off, it still makes the soft labels that the loss expects
        cfg.mixup.mixup_enabled = not 0 < cfg.mixup_off_epoch <= state.epoch
    total, first, finished = len(loader), state.batch, True
    grad_norm = None
    # A stream can be longer than it says, or have ended in the middle of a group.
    batches = itertools.islice(loader, total - first)
    state.optimizer.zero_grad(set_to_none=True)
    progress = Progress(
        f"epoch {state.epoch + 1}/{cfg.epochs}",
        total,
        cfg.log_interval,
        first=first,
        shown=cfg.world.is_main,
        epochs_left=cfg.epochs - state.epoch - 1,
        epoch_seconds=epoch_seconds,
    )
    with progress:
        for index, (images, labels) in enumerate(progress.timed(batches), start=first):
            images, labels = prepare_batch(images, labels, index, state.epoch, cfg)
            # The last group of an epoch can be short; its gradient is the mean over the batches it has.
            group_start = index - index % cfg.grad_accum_steps
            group_size = min(cfg.grad_accum_steps, total - group_start)
            last = index + 1 == group_start + group_size
            backward(state, cfg, images, labels, group_size, update_follows=last)
            if cfg.world.device.type == "cpu":
                check_finite(state.loss_sum.item(), state)
            state.batch = index + 1
            if last:
                grad_norm = update(state, cfg)
            figures = _figures(state, cfg, grad_norm) if progress.due else {}
            progress.step(len(images) * cfg.world.size, **figures)
            if figures:
                events.on_log(state, images, figures | {"images_per_s": progress.images_per_s})
            if last and events.on_update(state):
                finished = False
                break
    return {
        "loss": mean_loss(state, cfg.world),
        "lr": state.lr,
        "images_per_s": progress.images_per_s,
        "finished": finished,
    }


def prepare_batch(
    images: torch.Tensor, labels: torch.Tensor, index: int, epoch: int, cfg: StepConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeds everything for batch ``index`` of ``epoch``, then brings the batch to the device, erases and mixes it."""
    seed_all(cfg.seed, epoch, index, cfg.world.rank)
    images = images.to(cfg.world.device, non_blocking=True)
    labels = labels.to(cfg.world.device, non_blocking=True)
    if cfg.erasing is not None:
        images = cfg.erasing(images)
    if cfg.mixup is not None:
        # Images are mixed in pairs; a batch can be odd where an unreadable image was left out.
        even = len(images) - len(images) % 2
        images, labels = cfg.mixup(images[:even], labels[:even])
    return images.to(cfg.model_dtype, memory_format=cfg.layout), labels


def backward(
    state: TrainState,
    cfg: StepConfig,
    images: torch.Tensor,
    labels: torch.Tensor,
    group_size: int,
    update_follows: bool,
) -> None:
    """Adds a batch's share of the update's gradient, and its loss to the sums of the epoch."""
    # Distributed gradients are exchanged once per update, in its last backward pass.
    quiet = None if update_follows else getattr(state.forward, "no_sync", None)
    with quiet() if quiet else nullcontext():
        with autocast(cfg.world.device, cfg.amp_dtype):
            loss = cfg.loss(state.forward(images), labels)
        state.scaler.scale(loss / group_size).backward()
    state.loss_sum.add_(loss.detach(), alpha=len(images))
    state.images += len(images)


def mean_loss(state: TrainState, world: World) -> float:
    """Mean loss over the epoch's images of all processes so far; every process must call it.

    Raises:
        UserError: it is not finite.
    """
    sums = torch.stack([state.loss_sum, torch.full_like(state.loss_sum, state.images)])
    loss_sum, images = world.sum(sums).tolist()
    check_finite(loss_sum, state)
    return float(loss_sum / max(images, 1))


def check_finite(loss_sum: float, state: TrainState) -> None:
    """Ends the run on a loss that is not finite: on a CPU before it is learnt from, elsewhere before it is saved.

    Other devices are asked at log points and saves alone, because they must wait for every answer.
    """
    if not math.isfinite(loss_sum):
        raise UserError(
            f"the training loss became {loss_sum} in epoch {state.epoch}, by batch {state.batch}; stopped unsaved. "
            "Try a lower --lr, --clip-grad 1, or --amp-dtype bfloat16"
        )


def update(state: TrainState, cfg: StepConfig) -> torch.Tensor | None:
    """One optimizer update from the gathered gradients: clip, step, average the weights, step the schedule.

    Returns:
        The gradient's norm before clipping (a scalar on the device), or None without clipping by norm.
    """
    norm = None
    if cfg.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        if cfg.clip_mode == "norm":
            norm = nn.utils.clip_grad_norm_(state.model.parameters(), cfg.clip_grad)
        else:
            # Adaptive clipping leaves the classifier alone, as its authors advise.
            parameters = model_parameters(state.model, exclude_head=cfg.clip_mode == "agc")
            dispatch_clip_grad(parameters, cfg.clip_grad, mode=cfg.clip_mode)
    state.lr = state.optimizer.param_groups[0]["lr"]
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.num_updates += 1
    if state.ema is not None:
        state.ema.update(state.model, step=state.num_updates)
    if state.scheduler is not None:
        state.scheduler.step_update(state.num_updates)
    if cfg.synchronize and cfg.world.device.type != "cpu":
        torch.accelerator.synchronize()
    return norm


def _figures(state: TrainState, cfg: StepConfig, grad_norm: torch.Tensor | None) -> dict[str, float]:
    figures = {"loss": mean_loss(state, cfg.world), "lr": state.lr or state.optimizer.param_groups[0]["lr"]}
    if grad_norm is not None:
        figures["grad_norm"] = grad_norm.item()
    if cfg.world.device.type == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated(cfg.world.device) / 2**30
    return figures
