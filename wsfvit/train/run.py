"""A run: epochs of training and validation, with their checkpoints and logs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import distribute_bn
from torch import nn

from wsfvit.checkpoint.store import CheckpointStore
from wsfvit.factory.data import Loader, count_bad_images
from wsfvit.train.loggers import RunLog
from wsfvit.train.loop import LoopEvents, StepConfig, train_one_epoch
from wsfvit.train.nonfinite import report_bad_step
from wsfvit.train.signals import StopRequests
from wsfvit.train.state import TrainState
from wsfvit.utils.progress import duration


@dataclass
class Run(LoopEvents):
    """One run, from the position of ``state`` to its last epoch.

    Attributes:
        validate: See ``Plan``.
        described: What every checkpoint says about the run, primitives only.
        folder: The run folder.
        store: Where checkpoints go, and ``log``: where figures go; both None in all processes but the main one.
        metric: Column of summary.csv that the best checkpoint is best at.
        lower_is_better: It is best where it is lowest.
        recovery_interval: Batches between two saves within an epoch; 0 for none.
        dist_bn: How processes agree on batch norm's running statistics after an epoch: reduce, broadcast or not at all.
        eval_interval: Epochs between two validations; the last epoch always has one.
        after_epoch: See ``Plan``.
    """

    state: TrainState
    cfg: StepConfig
    train_loader: Loader
    val_loader: Loader
    validate: Callable[[nn.Module, Loader, str], dict[str, float]]
    described: dict[str, Any]
    folder: Path
    store: CheckpointStore | None
    log: RunLog | None
    stop: StopRequests
    metric: str
    lower_is_better: bool = False
    recovery_interval: int = 0
    dist_bn: str = "reduce"
    eval_interval: int = 1
    after_epoch: Callable[[RunLog, int], None] | None = None
    saved_at: int = field(default=0, init=False)

    def train(self) -> bool:
        """Trains all epochs that are left; returns False where a stop was asked for, with the state saved."""
        state = self.state
        while state.epoch < self.cfg.epochs:
            started, self.saved_at = time.perf_counter(), state.batch
            self.train_loader.set_position(state.epoch, state.batch)
            before = state.rows[-1]["seconds"] if state.rows else 0.0
            trained = train_one_epoch(state, self.train_loader, self.cfg, self, before)
            if not trained["finished"]:
                return False
            row = self.finish_epoch(trained, started)
            if self.log is not None:
                self.log.log_epoch(state.num_updates, state.rows)
                if self.after_epoch is not None:
                    self.after_epoch(self.log, state.num_updates)
            state.begin_epoch(state.epoch + 1)
            self.save(row["epoch"], row.get(self.metric))
            if state.epoch < self.cfg.epochs and self.cfg.world.any(self.stop.requested):
                return False
        return True

    def finish_epoch(self, trained: dict[str, Any], started: float) -> dict[str, Any]:
        """Validates where that is due, steps the schedule, and adds the epoch's line of summary.csv.

        Its figures are those of the moving average where there is one, as in timm.
        """
        state, world = self.state, self.cfg.world
        if world.size > 1 and self.dist_bn:
            distribute_bn(state.model, world.size, self.dist_bn == "reduce")
            if state.ema is not None:
                distribute_bn(state.ema.module, world.size, self.dist_bn == "reduce")
        due = (state.epoch + 1) % self.eval_interval == 0 or state.epoch + 1 == self.cfg.epochs
        figures = self.validate(self.judged, self.val_loader, f"validate {state.epoch}") if due else {}
        unit = self.cfg.task.unit
        row = {
            "epoch": state.epoch,
            "train_loss": trained["loss"],
            **figures,
            "lr": trained["lr"],
            "seconds": time.perf_counter() - started,
            f"{unit}_per_s": trained[f"{unit}_per_s"],
        }
        if state.scheduler is not None:
            state.scheduler.step(state.epoch + 1, row.get(self.metric))
        state.rows.append(row)
        shown = [
            f"{key.replace('_', ' ')} {value:.4g}"
            for key, value in ({"train_loss": row["train_loss"]} | figures).items()
        ]
        speed = f"{duration(row['seconds'])}, {trained[f'{unit}_per_s']:.3g} {unit}/s"
        world.log(f"epoch {state.epoch}: {', '.join(shown)}, {speed}{self._left_out()}")
        return row

    def _left_out(self) -> str:
        """What the epochs so far had to do without, in words."""
        world, state = self.cfg.world, self.state
        counts = {
            "unreadable training images": count_bad_images(self.train_loader, world),
            "unreadable validation images": count_bad_images(self.val_loader, world),
            "updates that were not finite": state.bad_steps,
        }
        found = [f"{count} {name}" for name, count in counts.items() if count]
        return f"; left out so far: {', '.join(found)}" if found else ""

    @property
    def judged(self) -> nn.Module:
        """The model that the run is judged by, in eval mode: the moving average where there is one on the device."""
        ema = self.state.ema
        model: nn.Module = self.state.model if ema is None or ema.device is not None else ema.module
        return model.eval()

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of summary.csv of the best epoch, the first of equals; None before the first validation."""
        sign = -1 if self.lower_is_better else 1
        judged = (row for row in self.state.rows if self.metric in row)
        return max(judged, key=lambda row: sign * row[self.metric], default=None)

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            UserError: the last checkpoint could not be written.
        """
        if self.log is not None:
            self.log.close()
        if self.store is not None:
            self.store.wait()

    def save(self, epoch: int, metric: float | None = None) -> None:
        """Saves the state after ``epoch`` with its ``metric``, or in the middle of it; every process must call it."""
        content = self.described | self.state.state_dict(self.cfg.world)
        if self.store is not None:
            self.store.save(content, epoch=epoch, batch=self.state.batch, metric=metric)

    def on_log(self, state: TrainState, batch: Any, figures: dict[str, float]) -> None:
        if self.log is not None:
            self.log.log_update(state.num_updates, figures)
            self.log.log_images(self.cfg.task.pictures(batch), state.epoch, state.batch)

    def on_bad_step(self, state: TrainState, grad_norm: torch.Tensor) -> None:
        said = report_bad_step(self.folder, self.described, state, self.cfg, self.train_loader, grad_norm)
        self.cfg.world.log(said)
        if self.log is not None:
            self.log.log_update(state.num_updates, {"bad_steps": state.bad_steps})

    def on_update(self, state: TrainState) -> bool:
        stopped = self.cfg.world.any(self.stop.requested)
        due = 0 < self.recovery_interval <= state.batch - self.saved_at and state.batch < len(self.train_loader)
        # After a bad step the weights may be what is wrong, and must not take the place of good ones.
        if stopped or (due and not state.bad_in_a_row):
            self.save(state.epoch)
            self.saved_at = state.batch
        return stopped
