"""The train command: a detector, its data and its recipe, handed over to be trained."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from wsfvit.cli.run import parse_with_config
from wsfvit.detection.args import train_parser
from wsfvit.detection.checkpoint import Setting, describe, start_from
from wsfvit.detection.data.batch import DetectionBatch
from wsfvit.detection.data.coco import CocoData
from wsfvit.detection.data.dataset import DetectionDataset
from wsfvit.detection.data.loader import build_eval_loader, build_train_loader
from wsfvit.detection.data.splits import check_categories, read_split
from wsfvit.detection.data.transforms import EvalTransform, Normalize, TrainSizes, TrainTransform
from wsfvit.detection.evaluation import CocoValidation
from wsfvit.detection.model.backbone import DetectionBackbone
from wsfvit.detection.model.config import KINDS, DetectorConfig
from wsfvit.detection.model.detector import Detector
from wsfvit.detection.optim import build_optimizer, build_scheduler
from wsfvit.detection.pictures import draw_found, draw_targets
from wsfvit.factory.data import loader_options
from wsfvit.factory.model import fetching_weights, set_batch_norm_constants, synchronize_batch_norm
from wsfvit.train.loggers import RunLog
from wsfvit.train.session import Plan, run_session
from wsfvit.train.task import Task
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.precision import amp_dtype, memory_format

# Validation images that are drawn after an epoch.
PICTURES = 4


def main(argv: Sequence[str], prog: str) -> None:
    """Parses the command line and trains."""
    run_training(parse_with_config(train_parser(prog), argv))


def run_training(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, in this process or as one of those that ``torchrun`` started; see ``run_session``."""
    return run_session(args, build_plan, f"{args.detector}-{args.model}", args.eval_metric)


@dataclass
class DetectionTask(Task):
    """Batches are ``DetectionBatch``; the loss is the sum of the detector's.

    Attributes:
        normalize: What images were normalised by.
        names: Of the categories.
        layout: Memory format of the images.
    """

    normalize: Normalize
    names: Sequence[str]
    layout: torch.memory_format = torch.contiguous_format

    def prepare(self, batch: DetectionBatch, device: torch.device) -> DetectionBatch:
        """Brings the batch to the device."""
        batch = batch.to(device, non_blocking=True)
        return replace(batch, images=batch.images.to(memory_format=self.layout))

    def count(self, batch: DetectionBatch) -> int:
        return len(batch)

    def loss(self, forward: nn.Module, batch: DetectionBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        losses = forward(batch.images, batch.sizes, batch.targets)
        return sum(losses.values()), {name: loss.detach() for name, loss in losses.items()}

    def pictures(self, batch: DetectionBatch) -> torch.Tensor:
        """The images with their boxes and masks."""
        return draw_targets(batch, self.normalize, self.names)


def build_plan(args: argparse.Namespace, world: World, start: bool) -> Plan:
    """Builds detector, data, recipe and validation; with ``start`` the detector has the weights to start from.

    Raises:
        UserError: they cannot be built so, or do not fit each other.
    """
    if args.model_dtype not in (None, "float32"):
        raise UserError(
            f"detectors keep their weights in float32: pass --amp instead of --model-dtype {args.model_dtype}"
        )
    train_data, val_data = _read_data(args)
    config = build_config(args, len(train_data.categories))
    detector = build_train_detector(args, config, world, start)
    backbone: Any = detector.backbone
    sizes = build_sizes(args)
    setting = Setting(
        categories=dict(train_data.categories),
        transform=EvalTransform(args.val_short_side or max(sizes.short_sides), sizes.long_side),
        normalize=_normalize_of(args.model),
        multiple=args.pad_multiple or backbone.multiple,
    )
    transform = TrainTransform(sizes, args.hflip, args.crop_prob)
    options = partial(loader_options, args, world, on_bad_image=args.on_bad_image)
    train_set = DetectionDataset(train_data, transform, with_targets=True, normalize=setting.normalize)
    val_set = DetectionDataset(val_data, setting.transform, with_targets=False, normalize=setting.normalize)
    layout = memory_format(args)
    validation = CocoValidation(
        world, val_data.ground_truth(), amp_dtype(args), layout, args.backend, args.log_interval, keep=PICTURES
    )
    paths = {image.id: image.path for image in val_data.images}

    def show(log: RunLog, update: int) -> None:
        draw_found(validation.kept, paths, setting.names, log, update)
        validation.kept = []

    images = f"{len(train_data.images)} training and {len(val_data.images)} validation images"
    return Plan(
        title=f"{args.detector} on {args.model}, {images}",
        model=detector,
        task=DetectionTask(setting.normalize, setting.names, layout),
        train_loader=build_train_loader(train_set, options(args.batch_size), setting.multiple, args.seed),
        val_loader=build_eval_loader(val_set, options(args.validation_batch_size or args.batch_size), setting.multiple),
        validate=validation,
        described=describe(config, setting),
        counts={"categories": len(train_data.categories), "validation images": len(val_data.images)},
        optimizer_of=build_optimizer,
        scheduler_of=build_scheduler,
        after_epoch=show,
    )


def _read_data(args: argparse.Namespace) -> tuple[CocoData, CocoData]:
    files = {
        split: (getattr(args, f"{split}_images"), getattr(args, f"{split}_annotations")) for split in ("train", "val")
    }
    train_data, val_data = (
        read_split(args.data, split, *files[split], args.on_bad_annotation, flags=f"{split}-")
        for split in ("train", "val")
    )
    check_categories(val_data, dict(train_data.categories), "the training data")
    return train_data.for_training(keep_empty=args.keep_empty), val_data


def build_config(args: argparse.Namespace, num_classes: int) -> DetectorConfig:
    """The detector that the arguments describe.

    Raises:
        UserError: a setting that there is not.
    """
    changes: dict[str, Any] = dict(args.detector_kwargs)
    if args.proposals is not None:
        counts = ("candidates_train", "candidates_test", "proposals_train", "proposals_test")
        changes = dict.fromkeys(counts, args.proposals) | changes
    changes["max_detections"] = args.max_detections
    options = {"frozen_stats": args.frozen_stats, "drop_path_rate": args.drop_path, **args.model_kwargs}
    return KINDS[args.detector](args.model, num_classes, backbone_options=options, **changes)


def build_train_detector(args: argparse.Namespace, config: DetectorConfig, world: World, start: bool) -> Detector:
    """Builds the detector on the CPU; with ``start`` it has the weights to start from.

    Raises:
        UserError: the backbone cannot be built so, or its weights cannot be had or do not fit.
    """
    named = [flag for flag in ("pretrained", "pretrained_path", "initial_checkpoint") if getattr(args, flag)]
    if len(named) > 1:
        flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in named)
        raise UserError(f"{flags} name weights to start from: pass one")
    backbone = _build_backbone(args, config, start)
    detector = Detector(config, backbone)
    if args.pretrained_path and start:
        left_out = backbone.load_classifier(
            args.pretrained_path, use_ema=True, trust=args.trust_checkpoint, resize_bias_tables=args.resize_bias_tables
        )
        world.log(f"the backbone starts from {args.pretrained_path}, without {', '.join(left_out) or 'any loss'}")
    if args.initial_checkpoint and start:
        kept = start_from(detector, args.initial_checkpoint, args.trust_checkpoint)
        world.log(f"starting from {args.initial_checkpoint}" + (f"; new: {', '.join(kept)}" if kept else ""))
    if start and args.frozen_stats and not named:
        world.log(
            "note: --frozen-stats without pretrained weights: batch norm will not normalise; try --no-frozen-stats"
        )
    if args.grad_checkpointing:
        try:
            backbone.body.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as err:
            raise UserError(f"model {args.model} has no --grad-checkpointing") from err
    set_batch_norm_constants(args, detector)
    if world.size > 1 and world.device.type == "cuda":
        # As published: a process's few RoIs are too few for statistics of their own. The backbone is --sync-bn's.
        detector.roi_heads = synchronize_batch_norm(detector.roi_heads)
    return detector


def _build_backbone(args: argparse.Namespace, config: DetectorConfig, start: bool) -> DetectionBackbone:
    if not (args.pretrained and start):
        return DetectionBackbone(config.backbone, **config.backbone_options)
    with fetching_weights(args.model, "--pretrained-path"):
        return DetectionBackbone(config.backbone, **config.backbone_options, pretrained=True)


def build_sizes(args: argparse.Namespace) -> TrainSizes:
    """The published sizes scaled to ``--long-side``, changed where the arguments say so.

    Raises:
        UserError: a range that is none.
    """
    given = {name: getattr(args, name) for name in ("short_sides", "crop_short_sides", "crop_range")}
    changes: dict[str, Any] = {name: tuple(value) for name, value in given.items() if value is not None}
    try:
        return replace(TrainSizes().scaled_to(args.long_side), **changes)
    except ValueError as err:
        raise UserError(str(err)) from err


def _normalize_of(model: str) -> Normalize:
    cfg = timm.get_pretrained_cfg(model)
    return Normalize(tuple(cfg.mean), tuple(cfg.std))
