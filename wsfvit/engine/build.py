"""From arguments to objects: device, model, data configuration, loaders, optimizer, schedule, mixing and loss."""

import argparse
import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.data import Mixup, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import resolve_model_input_args
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler
from torch import nn

import wsfvit  # noqa: F401  importing the package registers its models with timm
from wsfvit.data import create_dataset, dataset_num_classes
from wsfvit.errors import UserError

# Anything iterable over (images, labels) batches, with a length: a DataLoader or timm's prefetching wrapper of one.
Loader = Any
DataConfig = dict[str, Any]


def resolve_device(name: str | None) -> torch.device:
    """Device by name; without a name the first CUDA device, or the CPU where there is none.

    Raises:
        UserError: no such device here.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as err:
        raise UserError(f"--device {name} cannot be used here: {str(err).splitlines()[0]}") from err
    return device


def resolve_model_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """What ``create_model`` needs, besides the name, to build the model that ``args`` asks for.

    The image size is among them only for models that are built for one.

    Raises:
        UserError: no such model, or the sizes asked for contradict each other.
    """
    if not timm.is_model(args.model):
        near = difflib.get_close_matches(args.model, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them all"
        raise UserError(f"unknown model '{args.model}': {hint}")
    request = {"img_size": args.img_size, "in_chans": args.in_chans, "input_size": args.input_size}
    try:
        kwargs = resolve_model_input_args(args.model, request, num_classes=args.num_classes, **args.model_kwargs)
    except (TypeError, ValueError) as err:
        raise UserError(f"model {args.model}: {err}") from err
    return {key: value for key, value in kwargs.items() if key not in ("model_name", "pretrained_cfg")}


def build_model(args: argparse.Namespace, **extra: Any) -> nn.Module:
    """Creates the model that ``args`` asks for; ``extra`` goes to it too (drop rates).

    Raises:
        UserError: no such model, or it does not take the arguments.
    """
    kwargs = resolve_model_kwargs(args)
    try:
        model: nn.Module = timm.create_model(args.model, **kwargs, **extra)
    # Models report a size or argument they cannot take in these three ways.
    except (AssertionError, TypeError, ValueError) as err:
        shown = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        raise UserError(f"model {args.model} cannot be built with {shown}: {err}") from err
    return model


def resolve_data(args: argparse.Namespace, model: Any, saved: Mapping[str, Any] | None = None) -> DataConfig:
    """Evaluation configuration: input_size (C, H, W), interpolation, mean, std, crop_pct, crop_mode.

    Args:
        args: What the user set goes first.
        model: Its default configuration fills what nothing else sets.
        saved: A checkpoint's data_config, which goes before the model's.

    Raises:
        UserError: mean or std have neither one value nor one per channel.
    """
    base = {**model.pretrained_cfg, **(saved or {})}
    kwargs = resolve_model_kwargs(args)
    in_chans = kwargs.get("in_chans", base["input_size"][0])
    requested = {**vars(args), "in_chans": in_chans}
    if "img_size" in kwargs:  # the model was built for this size, whichever option it came from
        size = kwargs["img_size"]
        requested["input_size"] = (in_chans, *(size if isinstance(size, (list, tuple)) else (size, size)))
    for key in ("mean", "std"):
        if requested[key] is not None and len(requested[key]) not in (1, in_chans):
            raise UserError(f"--{key} takes 1 or {in_chans} values, not {len(requested[key])}")
    config: DataConfig = resolve_data_config(requested, pretrained_cfg=base)
    config["input_size"] = (in_chans, *config["input_size"][1:])
    for key in ("mean", "std"):
        values = tuple(config[key])
        # A model's default has three values; a grey image gets their average, as timm's loader does.
        config[key] = values if len(values) == in_chans else (sum(values) / len(values),) * in_chans
    return config


def build_dataset(args: argparse.Namespace, split: str, num_samples: int | None, in_chans: int, **mode: Any) -> Any:
    """Creates the dataset of one split; ``mode`` holds is_training, batch_size and seed for streaming datasets."""
    return create_dataset(
        args.dataset,
        root=args.data_dir or args.data,
        split=split,
        in_chans=in_chans,
        num_samples=num_samples,
        input_img_mode=args.input_img_mode,
        class_map=args.class_map,
        input_key=args.input_key,
        target_key=args.target_key,
        download=args.dataset_download,
        **mode,
    )


def check_classes(dataset: Any, num_classes: int) -> None:
    """Refuses a dataset whose labels would run past the model's classes."""
    classes = dataset_num_classes(dataset)
    if classes is not None and classes > num_classes:
        raise UserError(f"the data has {classes} classes, the model {num_classes}: pass --num-classes {classes}")


def build_eval_loader(
    args: argparse.Namespace, dataset: Any, data_config: DataConfig, batch_size: int, device: torch.device
) -> Loader:
    """Loader of every image of ``dataset``, once, in order: batches of images (B, C, H, W) float32 and labels (B,).

    Raises:
        UserError: the evaluation setting holds a value that no transform takes.
    """
    try:
        return create_loader(
            dataset,
            batch_size=batch_size,
            is_training=False,
            num_workers=args.workers,
            device=device,
            pin_memory=args.pin_mem,
            use_prefetcher=not args.no_prefetcher,
            **data_config,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as err:
        raise UserError(f"evaluation setting {data_config}: {type(err).__name__}: {err}") from err


def build_loaders(
    args: argparse.Namespace, data_config: DataConfig, num_classes: int, device: torch.device
) -> tuple[Loader, Loader]:
    """Training and validation loaders of batches: images (B, C, H, W) float32, labels (B,) int64.

    Raises:
        UserError: the data is missing, has too many classes, or is smaller than one batch.
    """
    in_chans = data_config["input_size"][0]
    mode = {"batch_size": args.batch_size, "seed": args.seed}
    train_set = build_dataset(args, args.train_split, args.train_num_samples, in_chans, is_training=True, **mode)
    val_set = build_dataset(args, args.val_split, args.val_num_samples, in_chans, **mode)
    check_classes(train_set, num_classes)
    check_classes(val_set, num_classes)
    if len(train_set) < args.batch_size:
        raise UserError(f"--batch-size {args.batch_size} is more than the {len(train_set)} training images")
    try:
        train_loader = create_loader(
            train_set,
            input_size=data_config["input_size"],
            batch_size=args.batch_size,
            is_training=True,
            no_aug=args.no_aug,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
            train_crop_mode=args.train_crop_mode,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            vflip=args.vflip,
            color_jitter=args.color_jitter,
            auto_augment=args.aa,
            interpolation=data_config["interpolation"] if args.no_aug else args.train_interpolation,
            mean=data_config["mean"],
            std=data_config["std"],
            num_workers=args.workers,
            pin_memory=args.pin_mem,
            device=device,
            use_prefetcher=not args.no_prefetcher,
        )
    except (AssertionError, KeyError, TypeError, ValueError) as err:
        raise UserError(f"the augmentation options do not fit together: {type(err).__name__}: {err}") from err
    val_batch_size = args.validation_batch_size or args.batch_size
    return train_loader, build_eval_loader(args, val_set, data_config, val_batch_size, device)


def resolve_lr(args: argparse.Namespace) -> float:
    """The learning rate: ``--lr``, or ``--lr-base`` scaled from ``--lr-base-size`` to the batch of one update."""
    if args.lr is not None:
        return float(args.lr)
    ratio = args.batch_size * args.grad_accum_steps / args.lr_base_size
    adaptive = any(name in args.opt.lower() for name in ("ada", "lamb"))
    scale = args.lr_base_scale or ("sqrt" if adaptive else "linear")
    return float(args.lr_base * (ratio**0.5 if scale == "sqrt" else ratio))


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """Optimizer by timm's factory, no weight decay on biases and norms.

    Raises:
        UserError: unknown optimizer, or a value it does not take.
    """
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(model, **optimizer_kwargs(args), **args.opt_kwargs)
    except (AssertionError, TypeError, ValueError) as err:
        raise UserError(f"optimizer '{args.opt}': {err}") from err
    return optimizer


def build_scheduler(
    args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> tuple[Scheduler | None, int]:
    """Learning rate schedule by timm's factory, and the number of epochs it lasts (None for ``--sched none``).

    Raises:
        UserError: the schedule's options contradict each other.
    """
    try:
        scheduler, epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch
        )
    except (AssertionError, ValueError, ZeroDivisionError) as err:
        raise UserError(f"schedule '{args.sched}': {err}") from err
    return scheduler, epochs


def build_mixup(args: argparse.Namespace, num_classes: int) -> Mixup | None:
    """Mixup and CutMix on whole batches, or None where neither is on.

    Raises:
        UserError: an odd batch size, which cannot be mixed in pairs.
    """
    if not (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax):
        return None
    if args.batch_size % 2:
        raise UserError(f"mixup and cutmix pair the images of a batch: --batch-size {args.batch_size} must be even")
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


def build_loss(args: argparse.Namespace, mixed: bool) -> nn.Module:
    """Training loss: against soft labels where batches are mixed, else cross-entropy with ``--smoothing``."""
    if mixed:
        loss: nn.Module = SoftTargetCrossEntropy()
    elif args.smoothing:
        loss = LabelSmoothingCrossEntropy(args.smoothing)
    else:
        loss = nn.CrossEntropyLoss()
    return loss
