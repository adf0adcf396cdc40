"""Published optimizer and schedule of detection: weight decay groups, learning rate by update."""

import argparse
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from wsfvit.factory import recipe
from wsfvit.utils.errors import UserError

# Parameters with these in their names are not decayed; all others are, biases too.
NOT_DECAYED = ("norm", "relative_position_bias_table")


def group_parameters(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups without and with weight decay, by the published rule (``NOT_DECAYED``)."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (0.0, weight_decay)]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = not any(part in name for part in NOT_DECAYED)
            groups[decayed]["params"].append(parameter)
    return groups


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """Builds the optimizer of ``--opt`` over ``group_parameters``.

    Raises:
        UserError: unknown optimizer, a value it does not take, or ``--layer-decay``.
    """
    if args.layer_decay is not None:
        raise UserError("--layer-decay is for image classifiers: leave it out")
    return recipe.build_optimizer(args, model, lambda model: group_parameters(model, args.weight_decay))


def build_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> tuple[Scheduler, int]:
    """Builds the schedule by update: linear warm-up, then steps, a cosine or a constant; also returns the epochs."""
    warmup: dict[str, Any] = {
        "warmup_t": args.warmup_updates,
        "warmup_lr_init": args.warmup_factor * args.lr,
        "warmup_prefix": False,
        "t_in_epochs": False,
    }
    if args.sched == "cosine":
        total = args.epochs * updates_per_epoch
        return CosineLRScheduler(optimizer, total, lr_min=args.min_lr, **warmup), args.epochs
    # timm decays one step before the milestone.
    milestones = args.decay_milestones if args.sched == "multistep" else []
    steps = [epoch * updates_per_epoch + 1 for epoch in sorted(milestones)]
    return MultiStepLRScheduler(optimizer, steps, decay_rate=args.decay_rate, **warmup), args.epochs
