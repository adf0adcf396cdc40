"""The validate command: average precision of a checkpoint, its table of categories, its detections."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from wsfvit.detection.checkpoint import load_detector
from wsfvit.detection.data.coco import check_categories, read_split
from wsfvit.detection.data.dataset import DetectionDataset
from wsfvit.detection.data.loader import build_eval_loader
from wsfvit.detection.evaluation import IOU_TYPES, METRICS, CocoValidation
from wsfvit.factory.data import count_bad_images, loader_options
from wsfvit.utils.distributed import World, joined_world
from wsfvit.utils.files import output_file, to_json, write_text_atomic
from wsfvit.utils.precision import amp_dtype, memory_format
from wsfvit.utils.tables import ResultsFile, Row, markdown_table


def run_validation(args: argparse.Namespace) -> Row:
    """Evaluates a checkpoint, in this process or as one of those that ``torchrun`` started, and writes the results.

    Returns:
        Settings and metrics: ``bbox_AP``, ``segm_AP``, ... from 0 to 1, and speeds in images per second.

    Raises:
        UserError: the checkpoint, the data or a value does not fit.
    """
    results_file = ResultsFile(args.results_file) if args.results_file else None
    categories_file = ResultsFile(args.categories_file, flag="--categories-file") if args.categories_file else None
    detections = output_file("--detections", args.detections) if args.detections else None
    with joined_world(args.device) as world:
        row, validation = _evaluate(args, world)
        evaluator = validation.evaluator
        assert evaluator is not None
        if world.is_main:
            categories = evaluator.per_category()
            print(_report(row, categories))
            if results_file is not None:
                results_file.write([row], single=True)
            if categories_file is not None:
                categories_file.write(categories)
            if detections is not None:
                write_text_atomic(detections, to_json(evaluator.detections_json()) + "\n")
        return row


def _evaluate(args: argparse.Namespace, world: World) -> tuple[Row, CocoValidation]:
    changes = {key: getattr(args, key) for key in ("short_side", "long_side", "max_detections")}
    loaded = load_detector(args.checkpoint, world.device, args.use_ema, args.trust_checkpoint, **changes)
    detector, setting, meta = loaded
    layout = memory_format(args)
    detector.to(memory_format=layout)  # type: ignore[call-overload]
    boxes_only = args.boxes_only or not detector.config.mask_loss_weight
    ways = {"boxes_only": boxes_only, "boxes_from_masks": args.boxes_from_masks}
    data = read_split(args.data, args.split, args.images, args.annotations, args.on_bad_annotation, **ways)
    check_categories(data, setting.categories, f"checkpoint '{args.checkpoint}'")
    dataset = DetectionDataset(data, setting.transform, with_targets=False, normalize=setting.normalize)
    options = loader_options(args, world, args.batch_size, on_bad_image=args.on_bad_image)
    loader = build_eval_loader(dataset, options, setting.multiple)
    validation = CocoValidation(world, data.ground_truth(), amp_dtype(args), layout, args.backend, args.log_freq)
    if boxes_only:
        validation.kinds = IOU_TYPES[:1]
    metrics = validation(detector, loader, "validate")
    row: Row = {
        "checkpoint": str(args.checkpoint),
        "weights": meta["weights"],
        "model": detector.config.backbone,
        "stages": len(detector.config.stages),
        "param_count": sum(parameter.numel() for parameter in detector.parameters()) / 1e6,
        **asdict(setting.transform),
        "precision": f"amp {args.amp_dtype}" if args.amp else "float32",
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type,
        "images": len(data.images),
        "left_out": count_bad_images(loader, world),
    }
    return row | metrics | validation.speed, validation


def _report(row: Row, categories: Sequence[dict[str, Any]]) -> str:
    """Settings, metrics, and a table of categories."""
    kind = "Mask R-CNN" if row["stages"] == 1 else f"Cascade Mask R-CNN ({row['stages']} stages)"
    left_out = f" ({row['left_out']} of them unreadable, counted as without detections)" if row["left_out"] else ""
    kinds = [name for name in IOU_TYPES if f"{name}_AP" in row]
    columns = ("objects", *(f"{name}_{metric}" for name in kinds for metric in ("AP", "AP50")))
    metrics = [(name, *(_cell(row[f"{name}_{metric}"]) for metric in METRICS)) for name in kinds]
    rows = [(entry["name"], *(_cell(entry[key]) for key in columns)) for entry in categories]
    return (
        f"{kind} on {row['model']}, {row['param_count']:.2f} M parameters, {row['weights']} weights of "
        f"{row['checkpoint']}\n  {row['images']} images{left_out}, sides up to {row['short_side']} and "
        f"{row['long_side']}, {row['precision']} on {row['device']}\n"
        f"  {row['images_per_s']:.3g} images/s, {row['detector_images_per_s']:.3g} of the detector alone\n\n"
        f"{markdown_table(('-', *METRICS), metrics, aligned=False)}\n\n"
        f"{markdown_table(('category', *columns), rows, aligned=False)}"
    )


def _cell(value: float) -> str:
    """A dash for a metric without any object, which is negative."""
    return str(value) if isinstance(value, int) else f"{value:.3f}" if value >= 0 else "-"
