"""Accuracy over a whole split, and the validate command."""

import argparse
import copy
import csv
import io
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from wsfvit.engine.build import (
    DataConfig,
    Loader,
    build_dataset,
    build_eval_loader,
    build_model,
    check_classes,
    resolve_data,
    resolve_device,
)
from wsfvit.engine.checkpoint import apply_state_dict, load_state_dict_file
from wsfvit.engine.distributed import World
from wsfvit.engine.files import write_text_atomic
from wsfvit.engine.progress import Progress
from wsfvit.errors import UserError


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Mixed precision in ``dtype`` on ``device``; off for None."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def amp_dtype(args: argparse.Namespace) -> torch.dtype | None:
    """The lower precision that ``--amp`` asks for, or None."""
    if not args.amp:
        return None
    return torch.bfloat16 if args.amp_dtype == "bfloat16" else torch.float16


def memory_format(args: argparse.Namespace) -> torch.memory_format:
    """The layout that ``--channels-last`` asks for."""
    return torch.channels_last if args.channels_last else torch.contiguous_format


# Not inference_mode: a model may keep what it computed here (masks, tables), and training could not use that then.
@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    title: str = "validate",
    interval: int = 50,
    world: World | None = None,
) -> dict[str, float]:
    """Measures a classifier over every image of ``loader``.

    Args:
        model: Maps images (B, C, H, W) to logits (B, K); put into eval mode here.
        loader: Batches of images and labels (B,).
        device: Where the model is.
        dtype: Mixed precision, or None.
        layout: Memory format of the images.
        title: Shown with the progress.
        interval: Batches between two progress lines.
        world: The processes that share the images, each with a loader of its own; None for this one alone.

    Returns:
        ``loss`` (mean cross-entropy), ``top1`` and ``top5`` in percent (with fewer than five classes, top5 is 100),
        ``images`` and ``images_per_s``.

    Raises:
        UserError: there are no images.
    """
    model.eval()
    world = world or World(device)
    precision = next(model.parameters()).dtype
    sums = torch.zeros(4, dtype=torch.float64)
    with Progress(title, len(loader), interval, shown=world.is_main) as progress:
        for images, labels in loader:
            images = images.to(device, precision, memory_format=layout)
            labels = labels.to(device)
            with autocast(device, dtype):
                logits = model(images)
            logits = logits.float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            sums[:3] += torch.stack([loss.double(), hits[:, 0].sum().double(), hits.sum().double()]).cpu()
            sums[3] += len(labels)
            progress.step(len(labels) * world.size)
        images_per_s = progress.images_per_s
    loss_sum, top1, top5, count = world.sum(sums.to(device)).tolist()
    if not count:
        raise UserError("the validation split has no images")
    return {
        "loss": loss_sum / count,
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
        "images": int(count),
        "images_per_s": images_per_s,
    }


def run_validation(args: argparse.Namespace) -> dict[str, Any]:
    """Runs validate.py: loads a checkpoint strictly, measures it on a split, prints and returns the result.

    Raises:
        UserError: the checkpoint, the model, the data or a value does not fit.
    """
    device = resolve_device(args.device)
    results_file = _results_path(args.results_file)
    state_dict, meta = load_state_dict_file(args.checkpoint, use_ema=args.use_ema, trust=args.trust_checkpoint)
    args = with_checkpoint_defaults(args, meta)
    model: Any = build_model(args)
    data_config = resolve_data(args, model, meta.get("data_config") if args.model == meta.get("arch") else None)
    apply_state_dict(model, state_dict, args.checkpoint)
    layout = memory_format(args)
    model.to(device, memory_format=layout)
    dataset = build_dataset(
        args, args.split, args.num_samples, data_config["input_size"][0], batch_size=args.batch_size
    )
    check_classes(dataset, model.num_classes)
    loader = build_eval_loader(args, dataset, data_config, args.batch_size, World(device))
    figures = evaluate(model, loader, device, amp_dtype(args), layout, interval=args.log_freq)
    result = _describe(args, meta, data_config, figures)
    print_result(result, args, device)
    if results_file is not None:
        _write_result(result, results_file)
        print(f"result: {results_file}")
    return result


def with_checkpoint_defaults(args: argparse.Namespace, meta: dict[str, Any]) -> argparse.Namespace:
    """Fills in what the command line leaves open from what the checkpoint says about itself.

    Where ``--model`` names another model than the checkpoint does, only the counts of classes and channels are taken.

    Raises:
        UserError: neither the command line nor the checkpoint names a model.
    """
    args = copy.copy(args)
    saved = dict(meta.get("model_kwargs", {}))
    args.model = args.model or meta.get("arch")
    if not args.model:
        raise UserError(f"checkpoint '{args.checkpoint}' does not say which model it is for: pass --model NAME")
    if args.num_classes is None:
        args.num_classes = saved.get("num_classes")
    if args.in_chans is None and args.input_size is None:
        args.in_chans = saved.get("in_chans")
    if args.model == meta.get("arch"):
        size_given = args.img_size is not None or args.input_size is not None
        dropped = {"num_classes", "in_chans"} | ({"img_size"} if size_given else set())
        args.model_kwargs = {k: v for k, v in saved.items() if k not in dropped} | args.model_kwargs
    return args


def print_result(result: dict[str, Any], args: argparse.Namespace, device: torch.device) -> None:
    """Prints the setting that was measured, then the figures."""
    if args.use_ema and result["weights"] == "raw":
        print("note: --use-ema was given, but the checkpoint holds no moving average; the raw weights were measured")
    channels, height, width = result["input_size"]
    precision = f"amp {args.amp_dtype}" if args.amp else "float32"
    print(
        f"{result['model']}, {result['weights']} weights of {result['checkpoint']}\n"
        f"  {channels}x{height}x{width}, crop {result['crop_pct']} {result['crop_mode']}, {result['interpolation']}, "
        f"mean {result['mean']}, std {result['std']}, {precision} on {device}\n"
        f"  {result['images']} images: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %, "
        f"loss {result['loss']:.4f}, {result['images_per_s']:.0f} images/s"
    )


def _describe(
    args: argparse.Namespace, meta: dict[str, Any], data_config: DataConfig, figures: dict[str, float]
) -> dict[str, Any]:
    setting = {key: list(value) if isinstance(value, tuple) else value for key, value in data_config.items()}
    source = {
        "model": args.model,
        "checkpoint": str(args.checkpoint),
        "weights": meta["weights"],
        "dataset": args.dataset,
        "split": args.split,
    }
    return {**source, **figures, **setting}


def _results_path(name: str) -> Path | None:
    if not name:
        return None
    path = Path(name)
    if path.suffix not in (".json", ".csv"):
        raise UserError(f"--results-file {name}: the name must end in .json or .csv")
    return path


def _write_result(result: dict[str, Any], path: Path) -> None:
    if path.suffix == ".json":
        write_text_atomic(path, json.dumps(result, indent=2) + "\n")
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(result))
    writer.writeheader()
    writer.writerow(result)
    write_text_atomic(path, text.getvalue())
