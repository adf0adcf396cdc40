"""``python -m wsfvit.detection export``: a detector as ONNX or as a torch.export program.

One image of a fixed size goes in, the chosen detections come out, suppression and masks included. ONNX files hold
standard operators only (RoiAlign, NonMaxSuppression, ...); a torch.export program needs ``import torchvision``, for the
same two, before it is loaded.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from wsfvit.cli.common import add_trust, build_parser, fraction, positive_int
from wsfvit.cli.tools import FORMATS
from wsfvit.detection.checkpoint import Setting, load_detector
from wsfvit.detection.data.transforms import EvalTransform, Normalize
from wsfvit.detection.model.config import KINDS
from wsfvit.detection.model.detector import Detector, build_detector
from wsfvit.detection.model.roi_heads import Detections
from wsfvit.detection.shapes import draw_shapes
from wsfvit.inference.export import (
    INPUT,
    TOLERANCE,
    Runner,
    export_model,
    load_runner,
    log,
    output_path,
    require_tools,
    write_export,
)
from wsfvit.utils.errors import UserError

# Boxes that differ by no more are the same detection, in pixels.
BOX_TOLERANCE = 0.1
# Suppression turns rounding into another choice now and then: largest share of detections that only one side has.
MAX_UNMATCHED = 0.02


class ExportableDetector(nn.Module):
    """A detector as a function of one image, the only form that can be exported.

    Shape: (1, 3, H, W), normalised -> boxes (M, 4), scores (M,), labels (M,) and mask_probs (M, 28, 28), as in
    `Detections`. The whole of H x W counts as image: boxes reach into padding unless the caller cuts them.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        _, _, H, W = images.shape
        (found,) = self.detector(images, [(H, W)])
        return tuple(found)


class Comparison(NamedTuple):
    """Detections of a detector beside those of its export.

    Attributes:
        total: Detections of the side that has more.
        unmatched: Those that the other side does not have.
        boxes: Largest difference between detections that both have, in pixels.
        scores: Likewise, of scores.
        masks: Likewise, of mask probabilities.
    """

    total: int
    unmatched: int
    boxes: float
    scores: float
    masks: float


def compare_detections(expected: Detections, found: Detections) -> Comparison:
    """Pairs detections of one label whose boxes are within BOX_TOLERANCE, whatever their order."""
    distances = (expected.boxes[:, None] - found.boxes).abs().amax(dim=2)
    distances = distances.masked_fill(expected.labels[:, None] != found.labels, math.inf)
    rows, columns = (distances <= BOX_TOLERANCE).nonzero(as_tuple=True)
    total = max(len(expected.boxes), len(found.boxes))
    if not len(rows):
        return Comparison(total, total, 0.0, 0.0, 0.0)
    return Comparison(
        total,
        total - min(len(rows.unique()), len(columns.unique())),
        float(distances[rows, columns].max()),
        float((expected.scores[rows] - found.scores[columns]).abs().max()),
        float((expected.mask_probs[rows] - found.mask_probs[columns]).abs().max()),
    )


@torch.no_grad()
def check_export(model: ExportableDetector, run: Runner, images: Sequence[Tensor]) -> Comparison:
    """Runs a detector and its export on each of ``images``, (1, 3, H, W).

    Returns:
        Sums of the numbers of detections, and the largest differences.

    Raises:
        UserError: the two differ.
    """
    each = [compare_detections(Detections(*model(image)), Detections(*run(image))) for image in images]
    total, unmatched = sum(x.total for x in each), sum(x.unmatched for x in each)
    # A tensor's largest value is NaN where there is one, and NaN is not below the tolerance.
    worst = torch.tensor([x[2:] for x in each], dtype=torch.float64).amax(dim=0)
    result = Comparison(total, unmatched, *worst.tolist())
    if unmatched > MAX_UNMATCHED * total or not (worst[1:] <= TOLERANCE).all():
        raise UserError(f"what was exported differs from PyTorch: {describe_comparison(result)}")
    return result


def describe_comparison(result: Comparison) -> str:
    """The comparison in words."""
    return (
        f"{result.total - result.unmatched} of {result.total} detections are the same, with largest differences of "
        f"{result.boxes:.1e} pixels, {result.scores:.1e} in scores and {result.masks:.1e} in masks"
    )


def run_export(args: argparse.Namespace) -> dict[str, Any]:
    """Exports a detector, compares it with PyTorch and writes it.

    Returns:
        What it writes into the JSON file, see `describe`.

    Raises:
        UserError: something does not fit, a package is missing, the detector cannot be exported, or the result differs
            from PyTorch; then nothing is written.
    """
    path = output_path(args.output, args.format)
    if bool(args.checkpoint) == bool(args.model):
        raise UserError("pass either --checkpoint FILE, or --model NAME for a detector with random weights")
    require_tools(args.format, args.check)
    detector, setting = _load(args)
    H, W = args.size or _size(setting)
    weights = "" if args.checkpoint else " untrained, random weights;"
    log(f"{detector.config.backbone},{weights} an image of {H} x {W}, as {args.format}; this can take minutes")
    model = ExportableDetector(detector).eval()
    pixels = torch.from_numpy(draw_shapes(H, W, seed=0)[0]).permute(2, 0, 1)
    images = [setting.normalize(pixels)[None], torch.randn(1, 3, H, W, generator=torch.Generator().manual_seed(0))]
    content = export_model(model, images[0], args.format, outputs=Detections._fields)
    description = describe(detector, setting, (H, W), args.format)
    if args.check:
        log("exported; comparing with PyTorch")
        result = check_export(model, load_runner(content, args.format), images)
        log(describe_comparison(result))
        if not result.total:
            log("note: the two images have no detections, which compares little; --score-threshold 0 gives some")
        description["compared"] = result._asdict()
    write_export(path, content, description)
    return description


def _load(args: argparse.Namespace) -> tuple[Detector, Setting]:
    """The detector in eval mode, of a checkpoint or new."""
    if args.checkpoint:
        detector, setting, _ = load_detector(
            args.checkpoint, torch.device("cpu"), args.use_ema, args.trust_checkpoint, None, None, args.max_detections
        )
    else:
        config = KINDS[args.detector](args.model, args.num_classes)
        if args.max_detections:
            config = replace(config, max_detections=args.max_detections)
        # Random weights score no class above the usual threshold, and then there would be nothing to compare.
        detector = build_detector(replace(config, score_threshold=0.0)).eval()
        cfg = timm.get_pretrained_cfg(args.model)
        categories = {label: str(label) for label in range(args.num_classes)}
        backbone: Any = detector.backbone
        setting = Setting(categories, EvalTransform(), Normalize(tuple(cfg.mean), tuple(cfg.std)), backbone.multiple)
    if args.score_threshold is not None:
        changed = replace(detector.config, score_threshold=args.score_threshold)
        detector.config = detector.roi_heads.config = changed
    return detector, setting


def _size(setting: Setting) -> tuple[int, int]:
    """Height and width that hold every image that lies on its long side."""
    sides = (setting.transform.short_side, setting.transform.long_side)
    height, width = (-(-side // setting.multiple) * setting.multiple for side in sides)
    return height, width


def describe(detector: Detector, setting: Setting, size: tuple[int, int], format: str) -> dict[str, Any]:
    """What a program that runs the exported file must know.

    Returns:
        format, backbone, ``input`` and ``outputs`` (name, shape with -1 for the number of detections), mean, std,
        short_side and long_side that images are resized to, categories by label, thresholds, the version of torch.
    """
    sides = {"boxes": [-1, 4], "scores": [-1], "labels": [-1], "mask_probs": [-1, 28, 28]}
    return {
        "format": format,
        "backbone": detector.config.backbone,
        "stages": len(detector.config.stages),
        "input": {"name": INPUT, "shape": [1, 3, *size], "dtype": "float32"},
        "outputs": [
            {"name": name, "shape": sides[name], "dtype": "int64" if name == "labels" else "float32"}
            for name in Detections._fields
        ],
        "mean": setting.normalize.mean,
        "std": setting.normalize.std,
        "short_side": setting.transform.short_side,
        "long_side": setting.transform.long_side,
        "categories": [{"id": key, "name": name} for key, name in setting.categories.items()],
        "score_threshold": detector.config.score_threshold,
        "nms_threshold": detector.config.nms_threshold,
        "max_detections": detector.config.max_detections,
        "torch": torch.__version__,
    }


def export_parser() -> argparse.ArgumentParser:
    """Parser of the export command."""
    parser = build_parser(
        "Write a detector as a function of one image of a fixed size: boxes, scores, labels and masks of detections."
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="checkpoint of the train command")
    parser.add_argument("--use-ema", action="store_true", help="use the moving average of the weights if there is one")
    add_trust(parser)
    parser.add_argument("--model", metavar="NAME", help="backbone of a detector with random weights, any of timm's too")
    parser.add_argument("--detector", default="mask_rcnn", choices=KINDS, help="kind of detector, with --model")
    parser.add_argument("--num-classes", type=positive_int, default=80, metavar="K", help="categories, with --model")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch"),
        default="onnx",
        help=f"onnx: {FORMATS['onnx']}; torch: {FORMATS['torch']}",
    )
    parser.add_argument(
        "--output",
        "-o",
        required=True,
        metavar="FILE",
        help="file to write, .onnx or .pt2; FILE.json describes input, outputs and categories",
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of the image (default: those of validation, on its long side, padded)",
    )
    parser.add_argument(
        "--score-threshold",
        type=fraction,
        metavar="F",
        help="leave out detections that score no higher (default: as in training; 0 for random weights)",
    )
    parser.add_argument("--max-detections", type=positive_int, metavar="N", help="default: as in training")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run what was exported on two images and compare with PyTorch before anything is written",
    )
    return parser
