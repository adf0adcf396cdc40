"""The train command: a classifier, its data and its recipe, handed over to be trained."""

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from wsfvit.data import dataset_class_names, dataset_num_classes, same_images
from wsfvit.factory.data import DataConfig, build_train_loader, build_val_loader, check_class_order, resolve_data
from wsfvit.factory.model import build_train_model, resolve_model_kwargs
from wsfvit.factory.recipe import build_erasing, build_loss, build_mixup
from wsfvit.train.classification import Classification, ClassifierValidation
from wsfvit.train.session import Plan, run_session
from wsfvit.utils.distributed import World
from wsfvit.utils.precision import amp_dtype, memory_format, model_dtype


def run_training(args: argparse.Namespace) -> dict[str, Any]:
    """Runs train.py, in this process or as one of those that ``torchrun`` started; see ``run_session``."""
    height, width = (args.input_size or (0, args.img_size, args.img_size))[1:]
    size = [] if height is None else [str(height) if height == width else f"{height}x{width}"]
    metric = "val_loss" if args.eval_metric == "loss" else args.eval_metric
    return run_session(
        args, build_plan, "-".join([args.model, *size]), metric, lower_is_better=args.eval_metric == "loss"
    )


def build_plan(args: argparse.Namespace, world: World, start: bool) -> Plan:
    """Builds model, data, loss and validation; with ``start`` the model has the weights to start from.

    Raises:
        UserError: they cannot be built so, or do not fit each other.
    """
    model = build_train_model(args, start, world.log)
    data_config = resolve_data(args, model)
    train_loader = build_train_loader(args, data_config, model.num_classes, world)
    val_loader = build_val_loader(args, data_config, model.num_classes, world)
    class_names = dataset_class_names(train_loader.dataset)
    check_class_order(dataset_class_names(val_loader.dataset), class_names, "the training data")
    described = _describe(args, model.num_classes, data_config)
    for note in _notes(args, train_loader.dataset, val_loader.dataset, model.num_classes):
        world.log(f"note: {note}")
    return Plan(
        title=f"{args.model} at {'x'.join(map(str, data_config['input_size']))}",
        model=model,
        task=build_task(args, model.num_classes, world.device),
        train_loader=train_loader,
        val_loader=val_loader,
        validate=ClassifierValidation(world, amp_dtype(args), memory_format(args), args.tta == 2, args.log_interval),
        described=described | ({"class_names": class_names} if class_names else {}),
        counts={"classes": model.num_classes},
    )


def _notes(args: argparse.Namespace, train_set: Any, val_set: Any, outputs: int) -> Iterator[str]:
    """What was probably not meant, a line each."""
    classes = dataset_num_classes(train_set)
    if args.num_classes is None and classes is not None and classes < outputs:
        yield f"the data has {classes} classes, the model {outputs}: --num-classes {classes} makes it learn no others"
    if same_images(train_set, val_set):
        yield "validation runs over the training images: divide them into train/ and val/, or train.tar and val.tar"
    if args.sched != "none" and not args.warmup_prefix and args.epochs <= args.warmup_epochs:
        yield (
            f"the learning rate is still warming up when the run ends: --epochs {args.epochs} is within "
            f"--warmup-epochs {args.warmup_epochs}"
        )


def build_task(args: argparse.Namespace, num_classes: int, device: torch.device) -> Classification:
    """The training step's part of the recipe."""
    mixup = build_mixup(args, num_classes)
    return Classification(
        criterion=build_loss(args, mixed=mixup is not None).to(device),
        erasing=build_erasing(args, device),
        mixup=mixup,
        mixup_off_epoch=args.mixup_off_epoch,
        layout=memory_format(args),
        dtype=model_dtype(args),
    )


def _describe(args: argparse.Namespace, num_classes: int, data_config: DataConfig) -> dict[str, Any]:
    kwargs = resolve_model_kwargs(args) | {"num_classes": num_classes, "in_chans": data_config["input_size"][0]}
    return {"task": "classification", "arch": args.model, "model_kwargs": kwargs, "data_config": data_config}
