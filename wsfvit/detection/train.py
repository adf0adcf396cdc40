"""Detection and instance segmentation: the task of ``wsfvit detection train``."""

import argparse
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from wsfvit.detection.checkpoint import Setting, describe, start_from
from wsfvit.detection.data.coco import CocoData, check_categories, read_split
from wsfvit.detection.data.dataset import DetectionBatch, DetectionDataset
from wsfvit.detection.data.loader import build_eval_loader, build_train_loader
from wsfvit.detection.data.transforms import EvalTransform, Normalize, TrainSizes, TrainTransform
from wsfvit.detection.evaluation import IOU_TYPES, CocoValidation
from wsfvit.detection.figures import draw_found, draw_targets
from wsfvit.detection.model.backbone import DetectionBackbone
from wsfvit.detection.model.config import KINDS, DetectorConfig
from wsfvit.detection.model.detector import Detector
from wsfvit.factory import recipe
from wsfvit.factory.data import Loader, loader_options
from wsfvit.factory.model import fetching_weights, set_batch_norm_constants, synchronize_batch_norm
from wsfvit.train.loggers import RunLog
from wsfvit.train.task import Task, refuse_classifier_flags
from wsfvit.train.trainer import Result, run_task
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.precision import amp_dtype, memory_format

# Validation images that are drawn after an epoch.
SHOWN = 4
# Parameters with these in their names are not decayed; all others are, biases too.
NOT_DECAYED = ("norm", "relative_position_bias_table")


def run_training(args: argparse.Namespace) -> Result:
    """Train a detector; see ``run_task``."""
    return run_task(args, DetectionTask)


class DetectionTask(Task):
    """Batches are ``DetectionBatch``; the loss is the sum of the detector's losses."""

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        super().__init__(args, world)
        self.metric, self.layout = args.eval_metric, memory_format(args)
        refuse_classifier_flags(args)
        if args.boxes_only and args.eval_metric.startswith("segm"):
            raise UserError(f"--boxes-only measures no masks: leave out --eval-metric {args.eval_metric}")

    def build_model(self, start: bool) -> Detector:
        args = self.args
        self.train_data, self.val_data = _read_data(args)
        self.config = build_config(args, len(self.train_data.categories))
        detector = build_train_detector(args, self.config, self.world, start)
        backbone: Any = detector.backbone
        self.sizes = build_sizes(args)
        self.setting = Setting(
            categories=dict(self.train_data.categories),
            transform=EvalTransform(args.val_short_side or max(self.sizes.short_sides), self.sizes.long_side),
            normalize=Normalize.of_model(args.model),
            multiple=args.pad_multiple or backbone.multiple,
        )
        return detector

    def build_loaders(self, model: Any) -> tuple[Loader, Loader]:
        args, world, setting = self.args, self.world, self.setting
        transform = TrainTransform(self.sizes, args.hflip, args.crop_prob)
        train_set = DetectionDataset(self.train_data, transform, with_targets=True, normalize=setting.normalize)
        val_set = DetectionDataset(self.val_data, setting.transform, with_targets=False, normalize=setting.normalize)
        self.validation = CocoValidation(
            world, self.val_data.ground_truth(), amp_dtype(args), self.layout, args.backend, args.log_interval, SHOWN
        )
        if args.boxes_only:
            self.validation.kinds = IOU_TYPES[:1]
        options = partial(loader_options, args, world, on_bad_image=args.on_bad_image)
        val_options = options(args.validation_batch_size or args.batch_size)
        train_loader = build_train_loader(train_set, options(args.batch_size), setting.multiple, args.seed)
        return train_loader, build_eval_loader(val_set, val_options, setting.multiple)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of ``--opt`` over ``group_parameters``."""
        group = partial(group_parameters, weight_decay=self.args.weight_decay)
        return recipe.build_optimizer(self.args, model, group)

    def build_scheduler(self, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> tuple[Scheduler, int]:
        """By update: linear warm-up, then steps, a cosine or a constant."""
        args = self.args
        warmup = {"warmup_t": args.warmup_updates, "warmup_lr_init": args.warmup_factor * args.lr}
        by_update = warmup | {"warmup_prefix": False, "t_in_epochs": False}
        if args.sched == "cosine":
            total = args.epochs * updates_per_epoch
            return CosineLRScheduler(optimizer, total, lr_min=args.min_lr, **by_update), args.epochs
        # timm decays one step before the milestone.
        milestones = args.decay_milestones if args.sched == "multistep" else []
        steps = [epoch * updates_per_epoch + 1 for epoch in sorted(milestones)]
        return MultiStepLRScheduler(optimizer, steps, decay_rate=args.decay_rate, **by_update), args.epochs

    def prepare(self, batch: DetectionBatch, device: torch.device) -> DetectionBatch:
        batch = batch.to(device, non_blocking=True)
        return replace(batch, images=batch.images.to(memory_format=self.layout))

    def count(self, batch: DetectionBatch) -> int:
        return len(batch)

    def loss(self, forward: nn.Module, batch: DetectionBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        losses = forward(batch.images, batch.sizes, batch.targets)
        return sum(losses.values()), {name: loss.detach() for name, loss in losses.items()}

    def evaluate(self, model: nn.Module, loader: Loader, title: str) -> dict[str, float]:
        """Average precision as COCO computes it, of boxes and masks; nothing where there is no object to find."""
        found = self.validation(model, loader, title)
        return found if found[self.metric] >= 0 else {}

    def name(self) -> str:
        return f"{self.args.detector}-{self.args.model}"

    def title(self) -> str:
        images = f"{len(self.train_data.images)} training and {len(self.val_data.images)} validation images"
        return f"{self.args.detector} on {self.args.model}, {images}"

    def describe(self) -> dict[str, Any]:
        return describe(self.config, self.setting)

    def counts(self) -> dict[str, int]:
        return {"categories": len(self.train_data.categories), "validation images": len(self.val_data.images)}

    def images(self, batch: DetectionBatch) -> torch.Tensor:
        """The images with their boxes and masks."""
        return draw_targets(batch, self.setting.normalize, self.setting.names)

    def after_epoch(self, log: RunLog, update: int) -> None:
        paths = {image.id: image.path for image in self.val_data.images}
        with_masks = bool(self.config.mask_loss_weight)
        draw_found(self.validation.kept, paths, self.setting.names, log, update, with_masks)
        self.validation.kept = []


def group_parameters(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups without and with weight decay, by the published rule (``NOT_DECAYED``)."""
    kept: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (kept if any(part in name for part in NOT_DECAYED) else decayed).append(parameter)
    return [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def _read_data(args: argparse.Namespace) -> tuple[CocoData, CocoData]:
    def read(split: str) -> CocoData:
        images, annotations = (getattr(args, f"{split}_{name}") for name in ("images", "annotations"))
        ways = args.boxes_only, args.boxes_from_masks
        return read_split(args.data, split, images, annotations, args.on_bad_annotation, f"{split}-", *ways)

    train_data, val_data = read("train"), read("val")
    check_categories(val_data, dict(train_data.categories), "the training data")
    return train_data.for_training(keep_empty=args.keep_empty), val_data


def build_config(args: argparse.Namespace, num_classes: int) -> DetectorConfig:
    """The detector that the arguments describe; an unknown setting is a ``UserError``."""
    changes: dict[str, Any] = dict(args.detector_kwargs)
    if args.proposals is not None:
        counts = ("candidates_train", "candidates_test", "proposals_train", "proposals_test")
        changes = dict.fromkeys(counts, args.proposals) | changes
    changes["max_detections"] = args.max_detections
    if args.boxes_only:
        changes["mask_loss_weight"] = 0.0
    options = {"frozen_stats": args.frozen_stats, "drop_path_rate": args.drop_path, **args.model_kwargs}
    return KINDS[args.detector](args.model, num_classes, backbone_options=options, **changes)


def build_train_detector(args: argparse.Namespace, config: DetectorConfig, world: World, start: bool) -> Detector:
    """Build the detector on the CPU; with ``start`` it has the weights to start from.

    Raises:
        UserError: the backbone cannot be built so, or its weights are missing or do not fit.
    """
    named = [flag for flag in ("pretrained", "pretrained_path", "initial_checkpoint") if getattr(args, flag)]
    if len(named) > 1:
        flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in named)
        raise UserError(f"{flags} name weights to start from: pass one")
    fetched = {"pretrained": True} if args.pretrained and start else {}
    with fetching_weights(args.model, "--pretrained-path") if fetched else nullcontext():
        backbone = DetectionBackbone(config.backbone, **config.backbone_options, **fetched)
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
            "note: --frozen-stats without pretrained weights: BatchNorm will not normalise; try --no-frozen-stats"
        )
    if args.grad_checkpointing:
        try:
            backbone.body.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as err:
            raise UserError(f"model {args.model} has no --grad-checkpointing") from err
    set_batch_norm_constants(args, detector)
    if world.size > 1 and world.device.type == "cuda":
        # As published: one process has too few RoIs for its own statistics. --sync-bn covers the backbone.
        detector.roi_heads = synchronize_batch_norm(detector.roi_heads)
    return detector


def build_sizes(args: argparse.Namespace) -> TrainSizes:
    """The published sizes scaled to ``--long-side``, changed by other arguments; an empty range is a ``UserError``."""
    given = {name: getattr(args, name) for name in ("short_sides", "crop_short_sides", "crop_range")}
    changes: dict[str, Any] = {name: tuple(value) for name, value in given.items() if value is not None}
    try:
        return replace(TrainSizes().scaled_to(args.long_side), **changes)
    except ValueError as err:
        raise UserError(str(err)) from err
