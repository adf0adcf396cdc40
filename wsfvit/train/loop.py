"""Task-independent training loop: one epoch, batch by batch."""

import itertools
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from torch import nn

from wsfvit.data.seeding import seed_all
from wsfvit.factory.data import Loader
from wsfvit.train.state import TrainState
from wsfvit.train.task import Task
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.precision import autocast
from wsfvit.utils.progress import Progress

ADVICE = (
    "Try a lower --lr, --clip-grad 1, or --amp-dtype bfloat16; the run's bad-steps folder has the first ones (for a "
    "classifier, wsfvit replay FILE reports the first module with a non-finite output)"
)


@dataclass(frozen=True)
class StepConfig:
    """Settings of the optimizer update."""

    world: World  # the processes that train together; batch sizes are per process
    task: Task  # how a batch becomes a loss
    amp_dtype: torch.dtype | None = None  # mixed precision
    epochs: int = 1  # number of epochs in all
    seed: int = 42  # base seed; every batch derives its own from it
    grad_accum_steps: int = 1  # batches whose gradients make one update; the last of an epoch may have fewer
    clip_grad: float | None = None
    clip_mode: str = "norm"
    synchronize: bool = False  # wait for the device after every update
    log_interval: int = 50
    max_bad_steps: int = 10  # stop after this many non-finite updates in a row; 0 stops at the first


class LoopEvents:
    """Callbacks of the loop; the methods here do nothing.

    ``figures`` are loss (mean of the epoch so far) and interval_loss (mean since the last call), once there are any,
    what the task logs beside the last batch's loss, lr, grad_norm (of the last update, before clipping), images_per_s
    (or another unit), data_wait (share of the time spent waiting for data), peak_gib (memory: of the GPU on CUDA, of
    the process on a CPU), loss_scale where float16 needs one, and bad_steps and overflows once there are any.
    """

    def on_log(self, state: TrainState, batch: Any, figures: dict[str, float]) -> None:
        """Called with every progress line; ``batch`` is the last one as the model saw it."""

    def on_bad_step(self, state: TrainState, grad_norm: torch.Tensor) -> None:
        """Called for a skipped non-finite update; ``state`` still has its losses and gradients."""

    def on_update(self, state: TrainState) -> bool:
        """Called after an update, when ``state`` can be saved; True ends the epoch here."""
        return False


def train_one_epoch(
    state: TrainState, loader: Loader, cfg: StepConfig, events: LoopEvents | None = None, epoch_seconds: float = 0.0
) -> dict[str, Any]:
    """Train from ``state.batch`` to the end of the epoch; ``state`` is changed in place.

    ``loader`` yields the remaining batches, as the task takes them, and its length counts the whole epoch.
    ``epoch_seconds`` is the duration of the last epoch, validation included, to estimate the remaining time; 0 if
    unknown. A ``UserError`` ends ``cfg.max_bad_steps`` non-finite updates in a row, or an epoch without a finite one.

    Returns:
        ``loss`` (mean over the trained images of all processes), ``lr`` (of the last update),
        ``images_per_s`` (of all processes; or another unit) and ``finished`` (False where ``events`` ended the epoch).
    """
    events = events or LoopEvents()
    state.forward.train()
    task, rate = cfg.task, f"{cfg.task.unit}_per_s"
    task.begin_epoch(state.epoch)
    total, first, finished = len(loader), state.batch, True
    grad_norm, logged = None, (state.loss_sum.clone(), state.images)
    # A stream can be longer than it says, or have ended in the middle of a group.
    batches = itertools.islice(loader, total - first)
    state.begin_group()
    state.keep_statistics()
    progress = Progress(
        f"epoch {state.epoch} of {cfg.epochs}",
        total,
        cfg.log_interval,
        first=first,
        shown=cfg.world.is_main,
        epochs_left=cfg.epochs - state.epoch - 1,
        epoch_seconds=epoch_seconds,
        unit=task.unit,
    )
    with progress:
        for index, batch in enumerate(progress.timed(batches), start=first):
            batch = prepare_batch(batch, index, state.epoch, cfg)
            # The last group of an epoch can be short; its gradient is the mean over the batches it has.
            group_start = index - index % cfg.grad_accum_steps
            group_size = min(cfg.grad_accum_steps, total - group_start)
            last = index + 1 == group_start + group_size
            parts = backward(state, cfg, batch, group_size, update_follows=last)
            state.batch = index + 1
            if last:
                grad_norm = update(state, cfg)
                if state.bad_in_a_row:
                    events.on_bad_step(state, grad_norm)
                    check_limit(state, cfg)
                state.begin_group()
            figures = _figures(state, cfg, parts, grad_norm) if progress.due else {}
            progress.step(task.count(batch) * cfg.world.size, **figures)
            if figures:
                figures |= {rate: progress.per_second, "data_wait": progress.data_wait}
                interval = mean_loss(state, cfg.world, *logged)
                events.on_log(state, batch, figures if interval is None else figures | {"interval_loss": interval})
                logged = (state.loss_sum.clone(), state.images)
            if last and events.on_update(state):
                finished = False
                break
    loss = mean_loss(state, cfg.world)
    if finished and loss is None:
        raise UserError(f"epoch {state.epoch} had no finite update; stopped unsaved. {ADVICE}")
    return {"loss": loss, "lr": state.lr, rate: progress.per_second, "finished": finished}


def prepare_batch(batch: Any, index: int, epoch: int, cfg: StepConfig) -> Any:
    """Seed all generators for batch ``index`` of ``epoch``, then let the task prepare it."""
    seed_all(cfg.seed, epoch, index, cfg.world.rank)
    return cfg.task.prepare(batch, cfg.world.device)


def backward(
    state: TrainState, cfg: StepConfig, batch: Any, group_size: int, update_follows: bool
) -> dict[str, torch.Tensor]:
    """Accumulate the gradient and the loss of a batch; return what the task logs beside the loss."""
    # Distributed gradients are exchanged once per update, in its last backward pass.
    quiet = None if update_follows else getattr(state.forward, "no_sync", None)
    with quiet() if quiet else nullcontext():
        with autocast(cfg.world.device, cfg.amp_dtype):
            loss, parts = cfg.task.loss(state.forward, batch)
        state.scaler.scale(loss / group_size).backward()
    state.group.append((loss.detach(), cfg.task.count(batch)))
    return parts


def mean_loss(
    state: TrainState, world: World, loss_sum_before: torch.Tensor | float = 0.0, images_before: int = 0
) -> float | None:
    """Mean loss over the images of the epoch that all processes trained on so far; None where there are none yet.

    With this process's sums at an earlier batch: over the images since then. Every process must call it.
    """
    images = torch.full_like(state.loss_sum, state.images - images_before)
    sums = torch.stack([state.loss_sum - loss_sum_before, images])
    loss_sum, images = world.sum(sums).tolist()
    return float(loss_sum / images) if images else None


def update(state: TrainState, cfg: StepConfig) -> torch.Tensor:
    """One optimizer update from the accumulated gradients: clip, step, update the EMA, step the schedule.

    Returns the gradient's norm before clipping, a scalar on the device.

    Where the gradient or one of its losses is not finite, only the schedule advances: weights, optimizer, EMA and
    running statistics keep their values. ``state`` counts such updates, and separately the overflows of float16's loss
    scale, where a lower scale can still make the gradient finite.
    """
    state.scaler.unscale_(state.optimizer)
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    losses_finite, gradient_finite = _are_finite(state, cfg.world, norm)
    state.lr = state.optimizer.param_groups[0]["lr"]
    state.num_updates += 1
    if losses_finite and gradient_finite:
        _step(state, cfg, norm)
        state.accept_group()
    elif losses_finite and state.scaler.is_enabled() and state.scaler.get_scale() > 1:
        state.overflows += 1
        state.accept_group()
    else:
        state.refuse_group()
    state.scaler.update()
    if state.scheduler is not None:
        state.scheduler.step_update(state.num_updates)
    if cfg.synchronize and cfg.world.device.type != "cpu":
        torch.accelerator.synchronize()
    return norm


def _are_finite(state: TrainState, world: World, norm: torch.Tensor) -> tuple[bool, bool]:
    """Whether the accumulated losses, and the gradient, are finite in all processes.

    The one place where an update waits for the device. Gradients are the same in all processes, losses are not.
    """
    losses = torch.stack([loss for loss, _ in state.group])
    bad = torch.stack([losses.isfinite().logical_not().any(), norm.isfinite().logical_not()]).int()
    losses_bad, gradient_bad = world.sum(bad).tolist()
    return not losses_bad, not gradient_bad


def _step(state: TrainState, cfg: StepConfig, norm: torch.Tensor) -> None:
    if cfg.clip_grad is not None and cfg.clip_mode == "norm":
        nn.utils.clip_grads_with_norm_(state.model.parameters(), cfg.clip_grad, norm)
    elif cfg.clip_grad is not None:
        # Adaptive clipping excludes the classifier, as its authors advise.
        clipped = model_parameters(state.model, exclude_head=cfg.clip_mode == "agc")
        dispatch_clip_grad(clipped, cfg.clip_grad, mode=cfg.clip_mode)
    state.scaler.step(state.optimizer)
    if state.ema is not None:
        state.ema.update(state.model, step=state.num_updates)


def check_limit(state: TrainState, cfg: StepConfig) -> None:
    """Stop the run where too many updates in a row were not finite."""
    if state.bad_in_a_row >= max(cfg.max_bad_steps, 1):
        count = "an update was" if state.bad_in_a_row == 1 else f"{state.bad_in_a_row} updates in a row were"
        raise UserError(
            f"{count} not finite, the last in epoch {state.epoch}, by batch {state.batch}; stopped unsaved. {ADVICE}"
        )


def _figures(
    state: TrainState, cfg: StepConfig, parts: dict[str, torch.Tensor], grad_norm: torch.Tensor | None
) -> dict[str, float]:
    found = {
        "loss": mean_loss(state, cfg.world),
        **{name: part.item() for name, part in parts.items()},
        "lr": state.lr or state.optimizer.param_groups[0]["lr"],
        "grad_norm": None if grad_norm is None else grad_norm.item(),
        "peak_gib": peak_memory(cfg.world.device),
        "loss_scale": state.scaler.get_scale() if state.scaler.is_enabled() else None,
        "bad_steps": state.bad_steps or None,
        "overflows": state.overflows or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def peak_memory(device: torch.device) -> float | None:
    """Peak memory in GiB: allocated on a CUDA device, resident set of this process on a CPU; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # POSIX only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
