"""From command-line arguments to the recipe: learning rate, optimizer, schedule, erasing, mixing, loss (timm's)."""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler
from torch import nn

from wsfvit.utils.errors import UserError


def resolve_grad_accum_steps(args: argparse.Namespace, world_size: int = 1) -> int:
    """Batches per update: ``--grad-accum-steps``, or the number that makes ``--global-batch-size``.

    Raises:
        UserError: both are given and contradict each other, or the global batch size is not a multiple.
    """
    if args.global_batch_size is None:
        return int(args.grad_accum_steps)
    steps, rest = divmod(args.global_batch_size, args.batch_size * world_size)
    if rest or not steps:
        per_process, left = divmod(args.global_batch_size, world_size)
        sizes = [] if left else [n for n in range(1, args.batch_size + 1) if per_process % n == 0]
        even = [n for n in sizes if n % 2 == args.batch_size % 2]  # mixup takes pairs
        batch = args.batch_size * world_size
        fitting = f"--batch-size {max(even or sizes)}" if sizes else f"--global-batch-size {max(steps, 1) * batch}"
        raise UserError(
            f"--global-batch-size {args.global_batch_size} is not a multiple of --batch-size {args.batch_size} x "
            f"{world_size} processes: {fitting} fits"
        )
    if args.grad_accum_steps not in (1, steps):
        raise UserError(
            f"--global-batch-size {args.global_batch_size} takes --grad-accum-steps {steps} here, not "
            f"{args.grad_accum_steps}: leave one of them out"
        )
    return int(steps)


def resolve_lr(args: argparse.Namespace, world_size: int = 1) -> float:
    """The learning rate: ``--lr``, or ``--lr-base`` scaled from ``--lr-base-size`` to the images of one update."""
    if args.lr is not None:
        return float(args.lr)
    ratio = args.batch_size * world_size * args.grad_accum_steps / args.lr_base_size
    adaptive = any(name in args.opt.lower() for name in ("ada", "lamb"))
    scale = args.lr_base_scale or ("sqrt" if adaptive else "linear")
    return float(args.lr_base * (ratio**0.5 if scale == "sqrt" else ratio))


def build_optimizer(
    args: argparse.Namespace,
    model: nn.Module,
    group_parameters: Callable[[nn.Module], list[dict[str, Any]]] | None = None,
) -> torch.optim.Optimizer:
    """Build an optimizer of ``model`` with timm's factory, from the flags of ``cli.recipe.add_optimizer`` and ``lr``.

    ``group_parameters`` makes the parameter groups; by default there is no weight decay on biases and norms. An unknown
    optimizer and a value that it does not take raise a ``UserError``.
    """
    try:
        return create_optimizer_v2(model, param_group_fn=group_parameters, **optimizer_kwargs(args), **args.opt_kwargs)
    except (AssertionError, TypeError, ValueError) as err:
        raise UserError(f"optimizer '{args.opt}': {err}") from err


def build_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> tuple[Scheduler | None, int]:
    """Build timm's learning rate schedule (None for ``--sched none``) and its epochs, or raise a ``UserError``."""
    if args.sched == "plateau" and args.eval_interval > 1:
        raise UserError("--sched plateau follows the figure of every epoch: leave --eval-interval at 1")
    try:
        with warnings.catch_warnings():
            # timm warns that a plateau's state is lost on resume; TrainState keeps it.
            warnings.simplefilter("ignore", FutureWarning)
            return create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch)
    except (AssertionError, ValueError, ZeroDivisionError) as err:
        raise UserError(f"schedule '{args.sched}': {err}") from err


def build_mixup(args: argparse.Namespace, num_classes: int) -> Mixup | None:
    """Build mixup and CutMix for whole batches; None where neither is on.

    Raises:
        UserError: an odd batch size, which cannot be mixed in pairs, or not two values of --cutmix-minmax.
    """
    if not (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax):
        return None
    if args.batch_size % 2:
        raise UserError(f"mixup and cutmix pair the images of a batch: --batch-size {args.batch_size} must be even")
    if args.cutmix_minmax and len(args.cutmix_minmax) != 2:
        raise UserError(f"--cutmix-minmax takes two values, from and to, not {len(args.cutmix_minmax)}")
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=num_classes,
    )


def build_erasing(args: argparse.Namespace, device: torch.device) -> RandomErasing | None:
    """Build random erasing of normalised batches (B, C, H, W) on ``device``, in place, or None where it is off."""
    if not args.reprob:
        return None
    return RandomErasing(args.reprob, mode=args.remode, max_count=args.recount, device=device)


def build_loss(args: argparse.Namespace, mixed: bool) -> nn.Module:
    """Build the training loss: ``--bce-loss``, else soft labels where batches are mixed, else ``--smoothing``.

    Raises:
        UserError: an option of the binary cross-entropy without ``--bce-loss``.
    """
    if args.bce_loss:
        return BinaryCrossEntropy(
            smoothing=0.0 if mixed else args.smoothing,  # mixed labels come smoothed
            target_threshold=args.bce_target_thresh,
            sum_classes=args.bce_sum,
            pos_weight=args.bce_pos_weight,
        )
    for flag in ("bce_sum", "bce_target_thresh", "bce_pos_weight"):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} is an option of --bce-loss, which is off")
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()
