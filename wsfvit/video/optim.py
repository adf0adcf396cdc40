"""Optimizer and schedule of the published recipe: Adam with one cycle of learning rate and momentum, by update."""

import argparse
import math

import torch
from timm.scheduler.scheduler import Scheduler
from torch import nn

from wsfvit.factory import recipe
from wsfvit.utils.errors import UserError


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
                lr, momentum = (
                    b + (a - b) / 2 * (1 + math.cos(math.pi * share)) for a, b in zip(start, end, strict=True)
                )
                return lr, momentum
            first = last
        return self._phases[-1][-1]

    def _get_lr(self, t: int) -> list[float]:
        return [self.values(t)[0]] * len(self.optimizer.param_groups)


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of ``--opt``.

    Raises:
        UserError: unknown optimizer, a value it does not take, or ``--layer-decay``.
    """
    if args.layer_decay is not None:
        raise UserError("--layer-decay is for image classifiers: leave it out")
    return recipe.build_optimizer(args, model)


def build_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> tuple[Scheduler | None, int]:
    """Build the schedule of ``--sched``, None for a constant rate; also return the number of epochs."""
    if args.sched == "constant":
        return None, args.epochs
    total, momentum = args.epochs * updates_per_epoch, tuple(args.momentum_range)
    cycle = (args.lr, args.pct_start, args.div_factor, args.final_div_factor, momentum)
    return OneCycleScheduler(optimizer, total, *cycle), args.epochs
