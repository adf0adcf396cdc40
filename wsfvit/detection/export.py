"""The export command: a detector as ONNX or as a torch.export program.

The exported function takes one image of a fixed size and gives the selected detections, suppression and masks included.
ONNX files hold only standard operators (RoiAlign, NonMaxSuppression, ...); a torch.export program needs
``import torchvision``, for the same two, before it is loaded.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsfvit.detection.checkpoint import Setting, load_detector
from wsfvit.detection.data.transforms import EvalTransform, Normalize
from wsfvit.detection.model.config import KINDS
from wsfvit.detection.model.detector import Detector, build_detector
from wsfvit.detection.model.heads import MASK_SIDE
from wsfvit.detection.model.roi_heads import Detections
from wsfvit.detection.shapes import draw_shapes
from wsfvit.inference import export
from wsfvit.utils.errors import UserError

# Boxes that differ by no more are the same detection, in pixels.
BOX_TOLERANCE = 0.1
# Rounding can change what suppression selects: largest share of detections that only one side has.
MAX_UNMATCHED = 0.02
# Shapes of the outputs; -1 is the number of detections.
SHAPES = {"boxes": [-1, 4], "scores": [-1], "labels": [-1], "mask_probs": [-1, MASK_SIDE, MASK_SIDE]}


def run_export(args: argparse.Namespace) -> dict[str, Any]:
    """Exports a detector, compares it with PyTorch and writes it; returns the content of the JSON file.

    Raises:
        UserError: something does not fit, a package is missing, the detector cannot be exported, or the result differs
            from PyTorch; then nothing is written.
    """
    path = export.output_path(args.output, args.format)
    if bool(args.checkpoint) == bool(args.model):
        raise UserError("pass either --checkpoint FILE, or --model NAME for a detector with random weights")
    export.require_tools(args.format, args.check)
    detector, setting = _load(args)
    H, W = args.size or _size(setting)
    weights = "" if args.checkpoint else " untrained, random weights;"
    export.log(f"{detector.config.backbone},{weights} an image of {H} x {W}, as {args.format}; this can take minutes")
    model = ExportableDetector(detector).eval()
    pixels = torch.from_numpy(draw_shapes(H, W, seed=0)[0]).permute(2, 0, 1)
    images = [setting.normalize(pixels)[None], torch.randn(1, 3, H, W, generator=torch.Generator().manual_seed(0))]
    content = export.export_model(model, images[0], args.format, outputs=model.outputs)
    description = describe(model, setting, (H, W), args.format)
    if args.check:
        export.log("exported; comparing with PyTorch")
        result = check_export(model, export.load_runner(content, args.format), images)
        export.log(str(result))
        if not result.total:
            export.log("note: the two images have no detections to compare; --score-threshold 0 gives some")
        description["compared"] = result._asdict()
    export.write_export(path, content, description)
    return description


def _load(args: argparse.Namespace) -> tuple[Detector, Setting]:
    """The detector of a checkpoint, or one with random weights, in eval mode."""
    if args.checkpoint:
        cpu, changes = torch.device("cpu"), {"max_detections": args.max_detections}
        detector, setting, _ = load_detector(args.checkpoint, cpu, args.use_ema, args.trust_checkpoint, **changes)
    else:
        changes = {"max_detections": args.max_detections} if args.max_detections else {}
        # Random weights score no class above the usual threshold, which would leave nothing to compare.
        config = KINDS[args.detector](args.model, args.num_classes, score_threshold=0.0, **changes)
        detector = build_detector(config).eval()
        categories = {label: str(label) for label in range(args.num_classes)}
        backbone: Any = detector.backbone
        setting = Setting(categories, EvalTransform(), Normalize.of_model(args.model), backbone.multiple)
    if args.score_threshold is not None:
        changed = replace(detector.config, score_threshold=args.score_threshold)
        detector.config = detector.roi_heads.config = changed
    return detector, setting


def _size(setting: Setting) -> tuple[int, int]:
    """Height and width that hold every image in landscape format."""
    sides = (setting.transform.short_side, setting.transform.long_side)
    height, width = (-(-side // setting.multiple) * setting.multiple for side in sides)
    return height, width


def describe(model: "ExportableDetector", setting: Setting, size: tuple[int, int], format: str) -> dict[str, Any]:
    """What a program needs to run the exported file; in shapes, -1 is the number of detections."""
    config = model.detector.config
    dtypes = {"labels": "int64"}
    return {
        "format": format,
        "backbone": config.backbone,
        "stages": len(config.stages),
        "input": {"name": export.INPUT, "shape": [1, 3, *size], "dtype": "float32"},
        "outputs": [
            {"name": name, "shape": SHAPES[name], "dtype": dtypes.get(name, "float32")} for name in model.outputs
        ],
        **asdict(setting.normalize),
        **asdict(setting.transform),
        "categories": [{"id": key, "name": name} for key, name in setting.categories.items()],
        **{key: getattr(config, key) for key in ("score_threshold", "nms_threshold", "max_detections")},
        "torch": torch.__version__,
    }


class ExportableDetector(nn.Module):
    """A detector as a function of one image, the only form that can be exported.

    Shape: (1, 3, H, W), normalised -> boxes (M, 4), scores (M,), labels (M,) and mask_probs (M, 28, 28), as in
    `Detections`; no masks if it was trained on boxes only. All of H x W counts as image: boxes reach into padding
    unless the caller clips them.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.outputs = Detections._fields if detector.config.mask_loss_weight else Detections._fields[:-1]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        _, _, H, W = images.shape
        (found,) = self.detector(images, [(H, W)])
        return tuple(found)[: len(self.outputs)]


class Comparison(NamedTuple):
    """Detections of a detector against those of its export."""

    total: int  # detections of the side that has more
    unmatched: int  # those that the other side does not have
    boxes: float  # largest difference between matched detections, in pixels
    scores: float  # likewise, of scores
    masks: float  # likewise, of mask probabilities

    def __str__(self) -> str:
        return (
            f"{self.total - self.unmatched} of {self.total} detections are the same, with largest differences of "
            f"{self.boxes:.1e} pixels, {self.scores:.1e} in scores and {self.masks:.1e} in masks"
        )


def compare_detections(expected: Detections, found: Detections) -> Comparison:
    """Matches detections of one label whose boxes are within BOX_TOLERANCE, in any order."""
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
def check_export(model: ExportableDetector, run: export.Runner, images: Sequence[Tensor]) -> Comparison:
    """Sums of counts and largest differences of a detector and its export on each of ``images``, (1, 3, H, W).

    Raises a ``UserError`` if the two differ.
    """
    each = [compare_detections(_with_masks(model(image)), _with_masks(run(image))) for image in images]
    total, unmatched = sum(x.total for x in each), sum(x.unmatched for x in each)
    # A tensor's largest value is NaN where there is one, and NaN is not below the tolerance.
    worst = torch.tensor([x[2:] for x in each], dtype=torch.float64).amax(dim=0)
    result = Comparison(total, unmatched, *worst.tolist())
    if unmatched > MAX_UNMATCHED * total or not (worst[1:] <= export.TOLERANCE).all():
        raise UserError(f"the export differs from PyTorch: {result}")
    return result


def _with_masks(outputs: Sequence[Tensor]) -> Detections:
    """The outputs of an exported detector, with empty masks where it has none."""
    boxes, scores, labels, *masks = outputs
    return Detections(boxes, scores, labels, *masks or [boxes.new_zeros(len(boxes), 0, 0)])
