"""The published recipe: Adam under one cycle of learning rate and momentum, by update."""

import argparse
import math

import torch
from timm.scheduler.scheduler import Scheduler
from torch import nn

from wsfvit.factory import recipe
from wsfvit.utils.errors import UserError


class OneCycleScheduler(Scheduler):
    """One cycle (Smith and Topin, 2018): the rate rises and falls again, momentum falls and rises, both by cosines.

    The values are those of ``torch.optim.lr_scheduler.OneCycleLR`` at its defaults, as a function of the number of
    updates so far: a resumed run needs no state of it. Behind its last update it stays where it ended.

    Args:
        optimizer: Gets the rate as ``lr`` and the momentum as the first of ``betas``, or as ``momentum``.
        total: Updates of the cycle.
        max_lr: Highest rate.
        pct_start: Share of the updates in which it rises.
        div_factor: It starts at ``max_lr`` over this.
        final_div_factor: It ends at the start's rate over this.
        momentum: Lowest momentum, at the highest rate, and highest, at both ends.
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
        """Sets rate and momentum of the update that follows ``num_updates`` updates."""
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
        for last, start, end in self._phases:  # noqa: B007  used behind the loop
            if num_updates <= last and first < last:
                break
            first = last
        else:
            return end
        share = (num_updates - first) / (last - first)
        lr, momentum = (b + (a - b) / 2 * (1 + math.cos(math.pi * share)) for a, b in zip(start, end, strict=True))
        return lr, momentum

    def _get_lr(self, t: int) -> list[float]:
        return [self.values(t)[0]] * len(self.optimizer.param_groups)


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``--opt``.

    Raises:
        UserError: unknown optimizer, a value it does not take, or ``--layer-decay``.
    """
    if args.layer_decay is not None:
        raise UserError("--layer-decay is for image classifiers: leave it out")
    return recipe.build_optimizer(args, model)


def build_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> tuple[Scheduler | None, int]:
    """The schedule of ``--sched``, None for a constant rate, and the number of epochs."""
    if args.sched == "constant":
        return None, args.epochs
    scheduler = OneCycleScheduler(
        optimizer,
        args.epochs * updates_per_epoch,
        args.lr,
        args.pct_start,
        args.div_factor,
        args.final_div_factor,
        tuple(args.momentum_range),
    )
    return scheduler, args.epochs
