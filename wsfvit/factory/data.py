"""From command-line arguments to data configuration, datasets and loaders."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from timm.data import resolve_data_config

import wsfvit  # noqa: F401  importing the package registers its models with timm
from wsfvit import data
from wsfvit.cli.recipe import RATIO, SCALE
from wsfvit.data import Augmentation, LoaderOptions, create_dataset, dataset_num_classes
from wsfvit.data.factory import STREAMING
from wsfvit.factory.model import resolve_model_kwargs
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.limits import check_data_config

# Anything iterable over (images, labels) batches, with a length: a DataLoader or timm's prefetching wrapper of one.
Loader = Any
DataConfig = dict[str, Any]


def resolve_data(
    args: argparse.Namespace, model: Any, saved: Mapping[str, Any] | None = None, test_size: bool = False
) -> DataConfig:
    """Resolve the evaluation configuration: input_size (C, H, W), interpolation, mean, std, crop_pct, crop_mode.

    Flags in ``args`` take precedence over ``saved``, a checkpoint's data_config, and that over the model's default
    configuration. With ``test_size`` and without another size, it is the model's test size, if it has one. A mean or
    std that has neither one value nor one per channel raises a ``UserError``.
    """
    base = {**model.pretrained_cfg, **(saved or {})}
    check_data_config(base, "the checkpoint")
    kwargs = resolve_model_kwargs(args)
    in_chans = kwargs.get("in_chans", base["input_size"][0])
    requested = {**vars(args), "in_chans": in_chans}
    if "img_size" in kwargs:  # the model was built for this size, whichever option it came from
        size = kwargs["img_size"]
        requested["input_size"] = (in_chans, *(size if isinstance(size, (list, tuple)) else (size, size)))
    for key in ("mean", "std"):
        if requested[key] is not None and len(requested[key]) not in (1, in_chans):
            raise UserError(f"--{key} takes 1 or {in_chans} values, not {len(requested[key])}")
    use_test_size = test_size and "input_size" not in (saved or {})
    config: DataConfig = resolve_data_config(requested, pretrained_cfg=base, use_test_size=use_test_size)
    config["input_size"] = (in_chans, *config["input_size"][1:])
    for key in ("mean", "std"):
        values = tuple(config[key])
        # A model's default has three values; a grey image gets their average, as timm's loader does.
        config[key] = values if len(values) == in_chans else (sum(values) / len(values),) * in_chans
    check_data_config(config, "the evaluation setting")
    return config


def build_dataset(args: argparse.Namespace, split: str, num_samples: int | None, in_chans: int, **mode: Any) -> Any:
    """Create the dataset of one split; ``mode`` holds is_training, batch_size and seed for streaming datasets."""
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
    """Refuse a dataset with more classes than the model, or with labels that are no classes of it."""
    classes = dataset_num_classes(dataset)
    if classes is not None and classes > num_classes:
        raise UserError(f"the data has {classes} classes, the model {num_classes}: pass --num-classes {classes}")
    data.check_labels(dataset, num_classes)


def build_eval_loader(
    args: argparse.Namespace,
    dataset: Any,
    data_config: DataConfig,
    batch_size: int,
    world: World,
    num_classes: int | None = None,
) -> data.EvalLoader:
    """Build the loader of this process's share of ``dataset``: batches of images (B, C, H, W) float32 and labels (B,).

    The labels are integers below ``num_classes``, or their batch raises a ``UserError``, as an invalid evaluation
    configuration does here.
    """
    return data.build_eval_loader(dataset, data_config, _image_options(args, batch_size, world, num_classes))


def check_class_order(names: Sequence[str] | None, others: Sequence[str] | None, whose: str, flag: str = "") -> None:
    """Raise a ``UserError`` for the first class of the data that is unknown elsewhere, or has another label there.

    ``names`` are the data's classes in the order of their labels (None if unknown), ``others`` those of ``whose``, e.g.
    ``the training data``, and ``flag`` is the option that permits a difference.
    """
    elsewhere = {name: label for label, name in enumerate(others or ())}
    labels = list(enumerate(names or ())) if elsewhere else []
    moved = [(label, name) for label, name in labels if elsewhere.get(name, label) != label]
    for label, name in moved or [(label, name) for label, name in labels if name not in elsewhere]:
        other = elsewhere.get(name, "none")
        raise UserError(
            f"class '{name}' has label {label} in this data and {other} in {whose} ({len(labels)} and "
            f"{len(elsewhere)} classes): add the missing class folders, or name all classes with --class-map"
            + (f"; for labels by position pass {flag}" if flag else "")
        )


def build_train_loader(
    args: argparse.Namespace, data_config: DataConfig, num_classes: int, world: World
) -> data.TrainLoader:
    """Build the training loader of this process: images (B, C, H, W) float32, labels (B,) int64.

    Data that is missing, has one class or too many, or is smaller than one batch of all processes is a ``UserError``.
    """
    if args.epoch_repeats and args.dataset.partition("/")[0].lower() not in STREAMING:
        raise UserError("--epoch-repeats is for streaming datasets; for others raise --epochs, or use --aug-repeats")
    mode = {"is_training": True, "decoder": args.decoder, "repeats": args.epoch_repeats}
    train_set = _training_split(args, args.train_split, args.train_num_samples, data_config, num_classes, **mode)
    if dataset_num_classes(train_set) == 1:
        raise UserError("the training data has one class, so there is nothing to classify: make one folder per class")
    return data.build_train_loader(
        train_set,
        data_config,
        _image_options(args, args.batch_size, world, num_classes),
        _augmentation(args, data_config),
        seed=args.seed,
        repeats=max(args.aug_repeats, 1),
    )


def build_val_loader(
    args: argparse.Namespace, data_config: DataConfig, num_classes: int, world: World
) -> data.EvalLoader:
    """Build the validation loader of this process for a training; see ``build_eval_loader`` and ``check_classes``."""
    val_set = _training_split(args, args.val_split, args.val_num_samples, data_config, num_classes)
    batch_size = args.validation_batch_size or args.batch_size
    return build_eval_loader(args, val_set, data_config, batch_size, world, num_classes)


def _training_split(
    args: argparse.Namespace, split: str, samples: int | None, config: DataConfig, num_classes: int, **mode: Any
) -> Any:
    """The dataset of one split of a training, after ``check_classes``; ``mode`` is what its kind of split adds."""
    mode |= {"batch_size": args.batch_size, "seed": args.seed, "num_classes": num_classes}
    dataset = build_dataset(args, split, samples, config["input_size"][0], **mode)
    check_classes(dataset, num_classes)
    return dataset


def count_bad_images(loader: Loader, world: World) -> int:
    """Number of unreadable images skipped so far, each counted once; every process must call it."""
    return len(set().union(*world.gather(list(loader.bad_images))))


def loader_options(args: argparse.Namespace, world: World, batch_size: int, **more: Any) -> LoaderOptions:
    """Loader options of this process; ``more`` are further fields of ``LoaderOptions``."""
    return LoaderOptions(
        batch_size=batch_size,
        num_workers=args.workers,
        device=world.device,
        pin_memory=args.pin_mem,
        world_size=world.size,
        rank=world.rank,
        timeout=args.loader_timeout,
        **more,
    )


def _image_options(args: argparse.Namespace, batch_size: int, world: World, num_classes: int | None) -> LoaderOptions:
    more = {"num_classes": num_classes, "use_prefetcher": not args.no_prefetcher, "on_bad_image": args.on_bad_image}
    return loader_options(args, world, batch_size, **more)


def _augmentation(args: argparse.Namespace, data_config: DataConfig) -> Augmentation:
    if args.input_img_mode not in (None, "L", "RGB") and (args.aa or args.grayscale_prob):
        raise UserError(f"--aa and --grayscale-prob take L or RGB images: leave them out for {args.input_img_mode}")
    padded = args.crop_padding > 0
    same = ("no_aug", "train_crop_mode", "crop_padding", "hflip", "vflip", "color_jitter", "color_jitter_prob")
    return Augmentation(
        **{name: getattr(args, name) for name in same},
        scale=None if padded and args.scale == SCALE else args.scale,
        ratio=None if padded and args.ratio == RATIO else args.ratio,
        grayscale_prob=args.grayscale_prob or 0.0,
        gaussian_blur_prob=args.gaussian_blur_prob or 0.0,
        auto_augment=args.aa,
        interpolation=data_config["interpolation"] if args.no_aug else args.train_interpolation,
    )
