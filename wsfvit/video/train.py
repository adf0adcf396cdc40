"""Video prediction: the task of ``wsfvit video train``."""

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from wsfvit.checkpoint.io import apply_state_dict
from wsfvit.checkpoint.store import BEST
from wsfvit.data import LoaderOptions
from wsfvit.factory.data import Loader, loader_options
from wsfvit.factory.model import set_batch_norm_constants
from wsfvit.train.loggers import RunLog
from wsfvit.train.task import Task, refuse_classifier_flags
from wsfvit.train.trainer import FirstBatches, Result, Trainer, run_task
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.precision import amp_dtype
from wsfvit.video import evaluation
from wsfvit.video.args import HIGHER_IS_BETTER, build_config
from wsfvit.video.checkpoint import describe, load_model, load_video_weights
from wsfvit.video.data.loader import Batch, build_eval_loader, build_train_loader, open_split, refuse_shared
from wsfvit.video.data.sequences import SequenceDataset
from wsfvit.video.figures import draw_strip
from wsfvit.video.model.simvp import SimVP, SimVPConfig

# Sequences of a batch that --save-images shows.
SHOWN = 4


def run_training(args: argparse.Namespace) -> Result:
    """Train a video model; see ``run_task``."""
    return run_task(args, VideoPrediction)


class VideoPrediction(Task):
    """Batches are frames (B, T_in, C, H, W) and future (B, T_out, C, H, W); the loss is the mean squared error."""

    unit = evaluation.UNIT

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        super().__init__(args, world)
        self.metric, self.lower_is_better = args.eval_metric, args.eval_metric not in HIGHER_IS_BETTER
        refuse_classifier_flags(args)

    def build_model(self, start: bool) -> nn.Module:
        args = self.args
        self.config = build_config(args)
        self.train_set, self.val_set, self.test_set = _open_splits(args, self.config)
        for note in (note for data in (self.train_set, self.val_set, self.test_set) if data for note in data.notes):
            self.world.log(note)
        model = SimVP(self.config)
        set_batch_norm_constants(args, model)
        if args.initial_checkpoint and start:
            weights, _ = load_video_weights(args.initial_checkpoint, use_ema=True, trust=args.trust_checkpoint)
            apply_state_dict(model, weights, args.initial_checkpoint)
            self.world.log(f"starting from {args.initial_checkpoint}")
        if self.test_set is None:
            self.world.log("no test sequences: name some with --test-data, or test later with wsfvit video validate")
        return model

    def build_loaders(self, model: nn.Module) -> tuple[Loader, Loader]:
        options, frames_in = loader_options(self.args, self.world, self.args.batch_size), self.config.frames_in
        train_loader = build_train_loader(self.train_set, frames_in, options, self.args.seed)
        return train_loader, build_eval_loader(self.val_set, frames_in, self._eval_options())

    def _eval_options(self) -> LoaderOptions:
        return loader_options(self.args, self.world, self.args.validation_batch_size or self.args.batch_size)

    def build_scheduler(self, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> tuple[Scheduler | None, int]:
        args = self.args
        if args.sched == "constant":
            return None, args.epochs
        cycle = (args.lr, args.pct_start, args.div_factor, args.final_div_factor, tuple(args.momentum_range))
        return OneCycleScheduler(optimizer, args.epochs * updates_per_epoch, *cycle), args.epochs

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        frames, future = (part.to(device, non_blocking=True) for part in batch)
        return frames, future

    def count(self, batch: Batch) -> int:
        return len(batch[0])

    def loss(self, forward: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over all values; logged beside it ``mse``, summed per frame, as in validation."""
        frames, future = batch
        loss = F.mse_loss(forward(frames).float(), future)
        return loss, {"mse": loss.detach() * future[0, 0].numel()}

    def evaluate(self, model: nn.Module, loader: Loader, title: str) -> dict[str, float]:
        assert isinstance(model, SimVP)
        args, predictors = self.args, {evaluation.MODEL: model.predict}
        found = evaluation.evaluate(
            predictors, loader, self.world, amp_dtype(args), title, args.log_interval, args.pictures
        )
        self.kept = found.kept
        return {name: found.metrics[evaluation.MODEL][name] for name in evaluation.SHOWN_METRICS}

    def name(self) -> str:
        return f"simvp-{self.args.family}"

    def title(self) -> str:
        config, train_set = self.config, self.train_set
        return (
            f"SimVP ({config.family} family), {config.frames_in} to {config.frames_out} frames of "
            f"{'x'.join(map(str, train_set.shape[1:]))}, on {train_set.name}, selected on {self.val_set.name}"
        )

    def describe(self) -> dict[str, Any]:
        return describe(self.config, self.args, self.train_set.shape[2:])

    def counts(self) -> dict[str, int]:
        return {"training sequences": len(self.train_set), "validation sequences": len(self.val_set)}

    def images(self, batch: Batch) -> Tensor:
        """All frames of the first sequences, one after the other."""
        return torch.cat(batch, 1)[:SHOWN].flatten(0, 1)

    def after_epoch(self, log: RunLog, update: int) -> None:
        for number, (frames, prediction, future) in enumerate(self.kept):
            strip = torch.from_numpy(draw_strip(frames, prediction, future)).permute(2, 0, 1)
            log.log_image(f"validation/{number}", strip, update)

    def at_end(self, trainer: Trainer) -> None:
        """Evaluate the best weights once on the test sequences, beside the baselines.

        Writes test.json, curves and figures into the run directory.

        Raises:
            UserError: the best checkpoint cannot be read any more, or a file cannot be written.
        """
        if self.test_set is None:
            return
        args, world = self.args, self.world
        trainer.store.wait()
        world.barrier()
        use_ema = trainer.eval_model is not trainer.state.model
        model, meta = load_model(trainer.run_dir / BEST, world.device, use_ema=use_ema)
        loader: Any = build_eval_loader(self.test_set, model.config.frames_in, self._eval_options())
        if args.dry_run:
            loader = FirstBatches(loader, 1)
        predictors = {evaluation.MODEL: model.predict, **evaluation.BASELINES}
        found = evaluation.evaluate(
            predictors, loader, world, amp_dtype(args), "test", args.log_interval, args.pictures
        )
        if not world.is_main:
            return
        described = evaluation.describe_data(loader, found)
        described |= {key: meta[key] for key in ("epoch", "num_updates", "weights")}
        described["num_updates_of_the_run"] = trainer.state.num_updates
        evaluation.write_report(trainer.run_dir, "test", described, found)
        world.log(
            f"test, once, on {described['data']}, {described['sequences']} sequences, with the weights of epoch "
            f"{meta['epoch']}\n{evaluation.format_metrics(found.metrics)}"
        )


def _open_splits(
    args: argparse.Namespace, config: SimVPConfig
) -> tuple[SequenceDataset, SequenceDataset, SequenceDataset | None]:
    """Training, validation and test sequences.

    Raises:
        UserError: they are missing, share clips, or differ in size.
    """
    length = config.frames_in + config.frames_out
    train_set = open_split(args, "train", length, config.channels, args.samples_per_epoch)
    val_set = open_split(args, "validation", length, config.channels, args.val_sequences, args.val_data)
    test_set = open_split(args, "test", length, config.channels, args.test_sequences, args.test_data)
    assert train_set is not None  # it falls back to all of the data
    if val_set is None:
        raise UserError(f"'{args.data}' has no folder validation or val: name other sequences with --val-data")
    refuse_shared({"training": train_set, "validation": val_set, "test": test_set})
    for other in (val_set, test_set):
        if other is not None and other.shape != train_set.shape:
            sizes = ["x".join(map(str, data.shape[2:])) for data in (other, train_set)]
            raise UserError(f"{other.name} has frames of {sizes[0]}, training of {sizes[1]}: give one --size")
    return train_set, val_set, test_set


class OneCycleScheduler(Scheduler):
    """One cycle (Smith and Topin, 2018): the rate rises and falls, the momentum falls and rises, along cosines.

    The values are those of ``torch.optim.lr_scheduler.OneCycleLR`` at its defaults, as a function of the number of
    updates: there is no state to save, neither here nor in the optimizer's parameter groups. A rise of a single update,
    where ``OneCycleLR`` divides by zero, is possible. After the last update the values stay constant.

    Args:
        optimizer: Gets the rate as ``lr`` and the momentum as the first of ``betas``, or as ``momentum``.
        total: Updates of the cycle.
        max_lr: Highest rate.
        pct_start: Share of the updates in which it rises.
        div_factor: Highest over initial rate.
        final_div_factor: Initial over final rate.
        momentum: Momentum at the highest rate, and at both ends.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total: int,
        max_lr: float,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        momentum: tuple[float, float] = (0.85, 0.95),
    ) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        start = max_lr / div_factor
        low, high = momentum
        # Of each phase: its last update, and (rate, momentum) at both ends.
        self._phases = (
            (pct_start * total - 1, (start, high), (max_lr, low)),
            (total - 1, (max_lr, low), (start / final_div_factor, high)),
        )
        self.step_update(0)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set rate and momentum of the update that follows ``num_updates`` updates."""
        super().step_update(num_updates, metric)
        _, momentum = self.values(num_updates)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum

    def values(self, num_updates: int) -> tuple[float, float]:
        """Rate and momentum of the update that follows ``num_updates`` updates."""
        first = 0.0
        for last, start, end in self._phases:
            if num_updates <= last and first < last:
                share = (num_updates - first) / (last - first)
                cosine = 1 + math.cos(math.pi * share)
                lr, momentum = (b + (a - b) / 2 * cosine for a, b in zip(start, end, strict=True))
                return lr, momentum
            first = last
        return self._phases[-1][-1]

    def _get_lr(self, t: int) -> list[float]:
        return [self.values(t)[0]] * len(self.optimizer.param_groups)
