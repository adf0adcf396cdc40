"""The trainer: set-up, resume, epochs, validation, checkpoints and logs of every training task."""

import argparse
import copy
import importlib
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.utils import distribute_bn
from torch import nn

from wsfvit.checkpoint.store import BEST, LAST, CheckpointStore
from wsfvit.factory.data import Loader, count_bad_images
from wsfvit.factory.recipe import resolve_grad_accum_steps, resolve_lr
from wsfvit.train.loggers import RunLog, SteadyOutput
from wsfvit.train.loop import LoopEvents, StepConfig, train_one_epoch
from wsfvit.train.nonfinite import report_bad_step
from wsfvit.train.run_dir import claimed_run_dir, name_run_dir, primitive, read_resumed
from wsfvit.train.setup import build_state, build_step_config, check_agreement, move_schedule, restore, set_up_torch
from wsfvit.train.signals import StopRequests
from wsfvit.train.state import TrainState
from wsfvit.train.task import Task
from wsfvit.utils.distributed import World, joined_world
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import make_folder, write_text_atomic
from wsfvit.utils.progress import duration


@dataclass(frozen=True)
class Result:
    """Outcome of a training."""

    finished: bool  # False after a request to stop; the state is saved then
    rows: list[dict[str, Any]]  # rows of summary.csv
    best: dict[str, Any] | None  # the row with the best metric
    run_dir: Path  # directory of checkpoints, logs and tables


def run_task(args: argparse.Namespace, task_class: type[Task]) -> Result:
    """Train a task in this process, or in one of those that ``torchrun`` started.

    Raises:
        UserError: a name, value or file does not fit, or ``--max-bad-steps`` updates in a row were not finite.
    """
    args = copy.copy(args)
    for module in args.device_modules or ():
        try:
            importlib.import_module(module)
        except ImportError as err:
            raise UserError(f"--device-modules {module}: {err}") from err
    # Signals are caught until the process group is left, which takes a while; while it is joined they end the process.
    with ExitStack() as until_left, joined_world(args.device) as world:
        stop = until_left.enter_context(StopRequests())
        until_left.enter_context(redirect_stdout(SteadyOutput(sys.stdout)))  # type: ignore[type-var]
        if args.dry_run:  # resumes nothing and leaves nothing
            folder = until_left.enter_context(tempfile.TemporaryDirectory())
            args.output, args.experiment, args.resume = world.gather(folder)[0], "", ""
        return Trainer(args, task_class(args, world), world, stop).fit()


class Trainer(LoopEvents):
    """One run of a task, from its start or a checkpoint to its last epoch, or to a request to ``stop``.

    The arguments of the training command, ``args``, are completed in place (``lr``, ``grad_accum_steps``).
    """

    state: TrainState  # model, optimizer, EMA, position: what a checkpoint holds
    cfg: StepConfig  # settings of the optimizer update
    described: dict[str, Any]  # what every checkpoint says about the run, primitives only

    def __init__(self, args: argparse.Namespace, task: Task, world: World, stop: StopRequests | None = None) -> None:
        args.grad_accum_steps = resolve_grad_accum_steps(args, world.size)
        args.lr = resolve_lr(args, world.size)
        self.args, self.task, self.world, self.stop = args, task, world, stop or StopRequests()
        self.run_dir = name_run_dir(args, world, task.name())
        self.store = CheckpointStore(self.run_dir, keep=args.checkpoint_hist, lower_is_better=task.lower_is_better)
        self.log: RunLog | None = None  # None in all processes but the main one
        self.saved_at = 0

    def fit(self) -> Result:
        """Train until the last epoch or a request to stop."""
        set_up_torch(self.args, self.world)
        with claimed_run_dir(self.run_dir, self.world):
            resumed = read_resumed(self.args, self.store, self.world)
            self.build(resumed)
            self.open_run_dir()
            try:
                finished = self.train_epochs()
                if finished:
                    self.store.wait()
                    if self.world.is_main:
                        self.store.check_best()
                    self.world.barrier()
                    self.task.at_end(self)
            finally:
                self.close()
        self.world.barrier()  # torchrun ends the other processes 30 seconds after the first one
        self.world.log(self._summary(finished))
        return Result(finished, self.state.rows, self.best, self.run_dir)

    def build(self, resumed: dict[str, Any] | None) -> None:
        """Build model, data and recipe, and restore the state of the run that is resumed."""
        args, task, world = self.args, self.task, self.world
        model = task.build_model(start=resumed is None)
        train_loader, val_loader = task.build_loaders(model)
        if args.dry_run:
            train_loader, val_loader = FirstBatches(train_loader, args.grad_accum_steps), FirstBatches(val_loader, 1)
        self.train_loader, self.val_loader = train_loader, val_loader
        check_agreement(args, world, {"training batches": len(train_loader), **task.counts()})
        updates_per_epoch = math.ceil(len(train_loader) / args.grad_accum_steps)
        self.state, self.epochs = build_state(task, model, updates_per_epoch)
        self.cfg = build_step_config(task, 1 if args.dry_run else self.epochs)
        arguments = primitive({key: value for key, value in vars(args).items() if key != "config"})
        geometry = {"images_per_batch": args.batch_size * world.size, "batches_per_epoch": len(train_loader)}
        self.described = primitive(task.describe()) | {"args": arguments} | geometry
        if resumed is not None:
            restore(self.state, resumed, task, self.described)
        move_schedule(self.state, args, updates_per_epoch)

    def open_run_dir(self) -> None:
        """Write args.yaml, open the logs and print what is going to be trained."""
        args, world, state = self.args, self.world, self.state
        if state.epoch >= self.epochs:
            world.log(f"all {self.epochs} epochs are done: increase --epochs to train further")
        if world.is_main:
            write_text_atomic(self.run_dir / "args.yaml", yaml.safe_dump(self.described["args"], sort_keys=False))
            self.log = RunLog(self.run_dir, args, self.described["args"], state.num_updates)
            if state.rows and not state.batch:  # a killed run may have saved the epoch but not logged it
                self.log.log_epoch(state.num_updates, state.rows)
        world.log(
            f"{self.task.title()}: {sum(p.numel() for p in state.model.parameters()) / 1e6:.2f} M parameters, "
            f"{world.size} x {world.device.type}, {args.batch_size * world.size * args.grad_accum_steps} "
            f"{self.task.unit} per update, {len(self.train_loader)} training and {len(self.val_loader)} validation "
            f"batches, lr {args.lr:.3g}, {self.epochs} epochs\nrun directory: {self.run_dir}"
        )

    def train_epochs(self) -> bool:
        """Train the remaining epochs; return False after a request to stop, with the state saved."""
        state = self.state
        while state.epoch < self.cfg.epochs:
            started, self.saved_at = time.perf_counter(), state.batch
            self.train_loader.set_position(state.epoch, state.batch)
            before = state.rows[-1]["seconds"] if state.rows else 0.0
            trained = train_one_epoch(state, self.train_loader, self.cfg, self, before)
            if not trained["finished"]:
                return False
            row = self.finish_epoch(trained, started)
            state.begin_epoch(state.epoch + 1)
            self.save(row["epoch"], row.get(self.task.metric))
            if self.log is not None:
                self.log.log_epoch(state.num_updates, state.rows)
                with self.log.attempt("figures of epochs"):
                    self.task.after_epoch(self.log, state.num_updates)
            if state.epoch < self.cfg.epochs and self.world.any(self.stop.requested):
                return False
        return True

    def finish_epoch(self, trained: dict[str, Any], started: float) -> dict[str, Any]:
        """Evaluate where that is due, step the schedule, and add the epoch's row of summary.csv."""
        state, world, args, unit = self.state, self.world, self.args, self.task.unit
        if world.size > 1 and args.dist_bn:
            for module in state.modules():
                distribute_bn(module, world.size, args.dist_bn == "reduce")
        if state.ema is not None and any(not value.isfinite().all() for value in state.ema.state_dict().values()):
            world.log("warning: the EMA of the weights is NaN or infinite: resume from an earlier epoch")
        due = (state.epoch + 1) % args.eval_interval == 0 or state.epoch + 1 == self.cfg.epochs
        figures = self.task.evaluate(self.eval_model, self.val_loader, f"validate {state.epoch}") if due else {}
        row = {
            "epoch": state.epoch,
            "train_loss": trained["loss"],
            **figures,
            "lr": trained["lr"],
            "seconds": time.perf_counter() - started,
            f"{unit}_per_s": trained[f"{unit}_per_s"],
        }
        if state.scheduler is not None:
            state.scheduler.step(state.epoch + 1, row.get(self.task.metric))
        state.rows.append(row)
        shown = {"train_loss": row["train_loss"]} | figures
        text = ", ".join(
            f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items() if key not in self.task.trivial
        )
        speed = f"{duration(row['seconds'])}, {trained[f'{unit}_per_s']:.3g} {unit}/s"
        world.log(f"epoch {state.epoch}: {text}, {speed}{self._skipped()}")
        return row

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate, in eval mode: the EMA where there is one on the device, as in timm."""
        ema = self.state.ema
        model: nn.Module = self.state.model if ema is None or ema.device is not None else ema.module
        return model.eval()

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of summary.csv with the best metric, the first of equals; None before the first validation."""
        sign, metric = -1 if self.task.lower_is_better else 1, self.task.metric
        evaluated = (row for row in self.state.rows if not math.isnan(row.get(metric, math.nan)))
        return max(evaluated, key=lambda row: sign * row[metric], default=None)

    def save(self, epoch: int, metric: float | None = None) -> None:
        """Save the state after ``epoch`` with its ``metric``, or within it; every process must call it."""
        content = self.described | self.state.state_dict(self.world)
        if self.world.is_main:
            make_folder(self.run_dir)  # it may have been deleted
            self.store.save(content, epoch=epoch, batch=self.state.batch, metric=metric)

    def close(self) -> None:
        """Close the logs and wait until the last checkpoint is written; raise a ``UserError`` if it was not."""
        if self.log is not None:
            self.log.close()
        self.store.wait()

    def on_log(self, state: TrainState, batch: Any, figures: dict[str, float]) -> None:
        if self.log is not None:
            self.log.log_update(state.num_updates, figures)
            self.log.log_images(self.task.images(batch), state.epoch, state.batch)

    def on_bad_step(self, state: TrainState, grad_norm: torch.Tensor) -> None:
        norm = grad_norm.item()
        self.world.log(report_bad_step(self.run_dir, self.described, state, self.cfg, self.train_loader, norm))
        if self.log is not None:
            self.log.log_update(state.num_updates, {"bad_steps": state.bad_steps})

    def on_update(self, state: TrainState) -> bool:
        stopped = self.world.any(self.stop.requested)
        interval = self.args.recovery_interval
        due = 0 < interval <= state.batch - self.saved_at and state.batch < len(self.train_loader)
        # After a non-finite update the weights may be the cause, and must not replace good ones.
        if stopped or (due and not state.bad_in_a_row):
            self.save(state.epoch)
            self.saved_at = state.batch
        return stopped

    def _skipped(self) -> str:
        """Summary of skipped images and updates."""
        counts = {
            "unreadable training images": count_bad_images(self.train_loader, self.world),
            "unreadable validation images": count_bad_images(self.val_loader, self.world),
            "non-finite updates": self.state.bad_steps,
        }
        found = [f"{count} {name}" for name, count in counts.items() if count]
        return f"; skipped so far: {', '.join(found)}" if found else ""

    def _summary(self, finished: bool) -> str:
        state, best, metric, run_dir = self.state, self.best, self.task.metric, self.run_dir
        if self.args.dry_run and finished:
            row = state.rows[-1]
            loss, seconds = row["train_loss"], row["seconds"]
            return f"dry run: one update (loss {loss:.4f}) and one validation batch in {seconds:.1f} s, ok"
        if not finished:
            return f"stopped on request, saved at epoch {state.epoch}, batch {state.batch}: --resume auto continues"
        if best is None:
            return f"no epoch has a {metric} in '{run_dir}'"
        files = {"best": BEST, "last": LAST, "table": "summary.csv"}
        lines = [f"{key}: {run_dir / name}" for key, name in files.items()]
        return "\n".join([f"best {metric} {best[metric]:.4g} (epoch {best['epoch']})", *lines])


class FirstBatches:
    """The first ``count`` batches of a loader; everything else is delegated to the loader."""

    def __init__(self, loader: Loader, count: int) -> None:
        self.loader, self.count = loader, min(count, len(loader))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.count)
