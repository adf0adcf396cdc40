"""``python -m wsfvit.video train``: a video model, its data and its recipe, handed over to be trained."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsfvit.checkpoint.io import apply_state_dict
from wsfvit.checkpoint.store import BEST
from wsfvit.cli.run import parse_with_config
from wsfvit.factory.data import loader_options
from wsfvit.factory.model import set_batch_norm_constants
from wsfvit.train.dry_run import FirstBatches
from wsfvit.train.loggers import RunLog
from wsfvit.train.run import Run
from wsfvit.train.session import Plan, run_session
from wsfvit.train.signals import STOPPED_EXIT_CODE
from wsfvit.train.task import Task
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.precision import amp_dtype
from wsfvit.video.args import HIGHER_IS_BETTER, train_parser
from wsfvit.video.checkpoint import describe, load_model, load_video_weights
from wsfvit.video.data.loader import Batch, build_eval_loader, build_train_loader
from wsfvit.video.data.sequences import SequenceDataset
from wsfvit.video.data.splits import open_split
from wsfvit.video.evaluation import (
    BASELINES,
    MODEL,
    UNIT,
    VideoValidation,
    describe_data,
    markdown_table,
    measure,
    write_report,
)
from wsfvit.video.model.options import build_config
from wsfvit.video.model.simvp import SimVP, SimVPConfig
from wsfvit.video.optim import build_optimizer, build_scheduler
from wsfvit.video.pictures import draw_strip

# Sequences of a batch that --save-images shows.
SHOWN = 4


def main(argv: Sequence[str]) -> None:
    """Parses the command line and trains; ends with exit code 75 where a stop was asked for."""
    if not run_training(parse_with_config(train_parser(), argv))["finished"]:
        sys.exit(STOPPED_EXIT_CODE)


def run_training(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, in this process or as one of those that ``torchrun`` started; see ``run_session``."""
    lower = args.eval_metric not in HIGHER_IS_BETTER
    return run_session(args, build_plan, f"simvp-{args.family}", args.eval_metric, lower_is_better=lower)


class VideoPrediction(Task):
    """Batches are frames (B, T_in, C, H, W) and future (B, T_out, C, H, W); the loss is the mean squared error."""

    unit = UNIT

    def prepare(self, batch: Batch, device: torch.device) -> Batch:
        """Brings the batch to the device."""
        frames, future = (part.to(device, non_blocking=True) for part in batch)
        return frames, future

    def count(self, batch: Batch) -> int:
        return len(batch[0])

    def loss(self, forward: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over all values; beside it ``mse``, per frame, as validation gives it."""
        frames, future = batch
        loss = F.mse_loss(forward(frames).float(), future)
        return loss, {"mse": loss.detach() * future[0, 0].numel()}

    def pictures(self, batch: Batch) -> Tensor:
        """All frames of the first sequences, one after the other."""
        return torch.cat(batch, 1)[:SHOWN].flatten(0, 1)


@dataclass(frozen=True)
class FinalTest:
    """Tests the best weights of a run once, beside the baselines; called as ``Plan.at_end`` says.

    Attributes:
        world: The processes.
        sequences: The test sequences.
        args: Of the run.
    """

    world: World
    sequences: SequenceDataset
    args: argparse.Namespace

    def __call__(self, run: Run) -> None:
        """Writes test.json, curves and pictures into the run folder.

        Raises:
            UserError: the best checkpoint cannot be read any more, or a file cannot be written.
        """
        args, world = self.args, self.world
        if run.store is not None:
            run.store.wait()
        world.barrier()
        judged_ema = run.judged is not run.state.model
        model, meta = load_model(run.folder / BEST, world.device, use_ema=judged_ema)
        config = model.config
        options = loader_options(args, world, args.validation_batch_size or args.batch_size)
        loader: Any = build_eval_loader(self.sequences, config.frames_in, options)
        if args.dry_run:
            loader = FirstBatches(loader, 1)
        predictors = {MODEL: model.predict, **BASELINES}
        found = measure(predictors, loader, world, amp_dtype(args), "test", args.log_interval, args.pictures)
        if not world.is_main:
            return
        described = {
            **describe_data(loader, found),
            "epoch": meta["epoch"],
            "num_updates": meta["num_updates"],
            "num_updates_of_the_run": run.state.num_updates,
            "weights": meta["weights"],
        }
        write_report(run.folder, "test", described, found)
        world.log(
            f"test, once, on {described['data']}, {described['sequences']} sequences, by the weights of epoch "
            f"{meta['epoch']}\n{markdown_table(found.figures)}"
        )


def build_plan(args: argparse.Namespace, world: World, start: bool) -> Plan:
    """Builds model, data, recipe and validation; with ``start`` the model has the weights to start from.

    Raises:
        UserError: they cannot be built so, or do not fit each other.
    """
    if args.model_dtype not in (None, "float32"):
        raise UserError(f"video models keep their weights in float32: pass --amp, not --model-dtype {args.model_dtype}")
    config = build_config(args)
    train_set, val_set, test_set = _open_splits(args, config)
    model = SimVP(config)
    set_batch_norm_constants(args, model)
    if args.initial_checkpoint and start:
        weights, _ = load_video_weights(args.initial_checkpoint, use_ema=True, trust=args.trust_checkpoint)
        apply_state_dict(model, weights, args.initial_checkpoint)
        world.log(f"starting from {args.initial_checkpoint}")
    val_options = loader_options(args, world, args.validation_batch_size or args.batch_size)
    validation = VideoValidation(world, amp_dtype(args), args.log_interval, args.pictures)

    def draw(log: RunLog, update: int) -> None:
        for number, (frames, prediction, future) in enumerate(validation.kept):
            strip = torch.from_numpy(draw_strip(frames, prediction, future)).permute(2, 0, 1)
            log.log_picture(f"validation/{number}", strip, update)

    if test_set is None:
        world.log("no test sequences: name some with --test-data, or test later with python -m wsfvit.video validate")
    return Plan(
        title=f"SimVP ({config.family} family), {config.frames_in} to {config.frames_out} frames of "
        f"{'x'.join(map(str, train_set.shape[1:]))}, on {train_set.name}, chosen on {val_set.name}",
        model=model,
        task=VideoPrediction(),
        train_loader=build_train_loader(
            train_set, config.frames_in, loader_options(args, world, args.batch_size), args.seed
        ),
        val_loader=build_eval_loader(val_set, config.frames_in, val_options),
        validate=validation,
        described=describe(config, args, train_set.shape[2:]),
        counts={"training sequences": len(train_set), "validation sequences": len(val_set)},
        optimizer_of=build_optimizer,
        scheduler_of=build_scheduler,
        after_epoch=draw,
        at_end=None if test_set is None else FinalTest(world, test_set, args),
    )


def _open_splits(
    args: argparse.Namespace, config: SimVPConfig
) -> tuple[SequenceDataset, SequenceDataset, SequenceDataset | None]:
    """Training, validation and test sequences.

    Raises:
        UserError: they cannot be had, or differ in size.
    """
    length = config.frames_in + config.frames_out
    train_set = open_split(args, "train", length, config.channels, args.samples_per_epoch)
    val_set = open_split(args, "validation", length, config.channels, args.val_sequences, args.val_data)
    test_set = open_split(args, "test", length, config.channels, args.test_sequences, args.test_data)
    assert train_set is not None  # it falls back on all of the data
    if val_set is None:
        raise UserError(f"'{args.data}' has no folder validation or val: name other sequences with --val-data")
    for other in (val_set, test_set):
        if other is not None and other.shape != train_set.shape:
            sizes = ["x".join(map(str, data.shape[2:])) for data in (other, train_set)]
            raise UserError(f"{other.name} has frames of {sizes[0]}, training of {sizes[1]}: give one --size")
    return train_set, val_set, test_set
