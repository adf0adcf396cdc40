"""The flops command: parameters and multiply-accumulates (MACs) of a detector, by the published rule and by ours.

One pass of one image: backbone, pyramid, proposal head, and the RoI heads on fixed numbers of RoIs. Both counts leave
out the choice of proposals and detections (sorting, suppression), which depends on the image.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from wsfvit.analysis.flop_counter import count_complexity
from wsfvit.analysis.flops import CONVENTION
from wsfvit.detection.model.config import KINDS, DetectorConfig
from wsfvit.detection.model.detector import Detector, build_detector
from wsfvit.detection.model.heads import BOX_POOL, MASK_POOL
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import write_text_atomic
from wsfvit.utils.tables import ResultsFile, markdown_table

# As printed in the WSF-ViT release of February 2026: parameters (M) and "FLOPs" (G, in fact MACs).
PUBLISHED = {
    ("mask_rcnn", "wsfvit_t_224"): (42.7, 254.6),
    ("cascade_mask_rcnn", "wsfvit_t_224"): (80.5, 733),
    ("cascade_mask_rcnn", "wsfvit_s_224"): (98.9, 788),
    ("cascade_mask_rcnn", "wsfvit_m_224"): (126.7, 885),
}
PUBLISHED_SETTING = (1120, 896, 1000, 100, 80)  # image, RoIs of boxes and of masks, classes
PARTS = {
    "backbone": "backbone",
    "FPN": "fpn",
    "RPN": "rpn",
    "box heads": "roi_heads.box_heads",
    "mask heads": "roi_heads.mask_heads",
}
TOTAL = "total"
NOTES = (
    "Published: the figures printed in the WSF-ViT release of February 2026. Published rule: how they were counted, "
    "layer by layer as mmcv 1.7 does, which knows convolutions, linear layers, batch and layer norms, ReLU and pooling "
    "by their exact classes. It leaves out all other operations: attention products, strided convolutions with SAME "
    "padding, most norms, GELU, the Haar transform.",
    "The tiny backbone has the classifier's inter-subband heads (2, 4, 8, 16). With the published detector's (4, 8, "
    "16, 32) its channel attention takes half the products, which the published rule does not see.",
    CONVENTION,
    "Both counts take fixed numbers of RoIs, and leave out the choice of proposals and detections (sorting, "
    "suppression), which depends on the image.",
)


@dataclass(frozen=True)
class PartCost:
    """Cost of one part of a detector."""

    name: str  # a key of `PARTS`, or "total"
    params: int  # number of parameters
    published: int  # MACs by the published rule
    macs: int  # MACs by the rules of `wsfvit.analysis.flop_rules`
    other: int  # floating-point operations outside ``macs``, by the same rules; RoIAlign only counts in the total


# Keys are kind of detector and backbone.
Counts = dict[tuple[str, str], list[PartCost]]


def run_flops(args: argparse.Namespace) -> None:
    """Counts the detectors that the arguments name, prints the tables, and writes them on request.

    Raises:
        UserError: no such backbone, a size it cannot take, or the folder cannot be written.
    """
    folder = Path(args.output) if args.output else None
    if folder and not folder.is_dir():
        raise UserError(f"--output {folder}: no such folder")
    size = tuple(args.img_size)
    counts: Counts = {}
    for kind, backbone in PUBLISHED if args.all else [(args.detector, args.model)]:
        config = KINDS[kind](backbone, args.num_classes)
        counts[kind, backbone] = count_detector(config, size, args.box_rois, args.mask_rois)
        print(f"counted {kind} {backbone}", flush=True)
    lines = [
        f"One image of {size[0]} x {size[1]}, {args.box_rois} RoIs for boxes, {args.mask_rois} for masks, "
        f"{args.num_classes} classes.\n",
        _totals(counts, (*size, args.box_rois, args.mask_rois, args.num_classes) == PUBLISHED_SETTING),
        "",
        _breakdown(counts),
        *(f"\n{text}" for text in NOTES),
    ]
    print("", *lines, sep="\n")
    if folder:
        versions = f"torch {torch.__version__} and timm {timm.__version__}"
        origin = f"Counted with {versions}; arguments of `python -m wsfvit.detection`: `{' '.join(sys.argv[1:])}`.\n"
        write_text_atomic(folder / "flops.md", "\n".join([origin, *lines, ""]))
        columns = ("detector", "backbone", "part", "parameters", "published_rule_macs", "macs", "flops_outside_macs")
        rows = [(*key, p.name, p.params, p.published, p.macs, p.other) for key, parts in counts.items() for p in parts]
        ResultsFile(str(folder / "flops.csv")).write([dict(zip(columns, row, strict=True)) for row in rows])
        print(f"\ntables: {folder / 'flops.md'}, {folder / 'flops.csv'}")


def _totals(counts: Counts, published_setting: bool) -> str:
    """Totals of each detector, beside the published ones where the setting is theirs."""
    header = (
        *("detector", "backbone", "params (M)", "published params (M)"),
        *("published MACs (G)", "MACs, published rule (G)", "MACs (G)", "FLOPs outside MACs (G)"),
    )
    rows = []
    for key, (*_, total) in counts.items():
        published = map(str, PUBLISHED[key] if published_setting and key in PUBLISHED else "--")
        ours = map(_giga, (total.published, total.macs, total.other))
        rows.append((*key, f"{total.params / 1e6:.3f}", *published, *ours))
    return markdown_table(header, rows, aligned=False)


def _breakdown(counts: Counts) -> str:
    header = ("detector", "backbone", "part", "params (M)", "MACs, published rule (G)", "MACs (G)", "share of MACs (%)")
    rows = [
        (*key, p.name, f"{p.params / 1e6:.3f}", _giga(p.published), _giga(p.macs), f"{100 * p.macs / total.macs:.1f}")
        for key, (*parts, total) in counts.items()
        for p in parts
    ]
    return markdown_table(header, rows, aligned=False)


def _giga(value: int) -> str:
    return f"{value / 1e9:.2f}"


def count_detector(
    config: DetectorConfig, size: tuple[int, ...] = (1120, 896), box_rois: int = 1000, mask_rois: int = 100
) -> list[PartCost]:
    """Counts one image of ``size`` (H, W), padded to what the backbone takes, on the meta device: nothing is computed.

    Each box head gets ``box_rois`` RoIs, each mask head ``mask_rois``. Returns the parts, in the order of `PARTS`, and
    the total.
    """
    with torch.device("meta"):
        detector = build_detector(config).eval()
        images = torch.zeros(1, 3, *size)
    published = _count_by_published_rule(detector)
    found = count_complexity(_FixedRoIs(detector, box_rois, mask_rois), images)
    by_name = {module.name: module for module in found.modules}
    parts = []
    for name, path in PARTS.items():
        module = by_name[f"detector.{path}"]
        layers = sum(macs for layer, macs in published.items() if f"{layer}.".startswith(f"{path}."))
        parts.append(PartCost(name, module.params, layers, module.cost.macs, module.cost.other))
    return [*parts, PartCost(TOTAL, found.params, sum(published.values()), found.macs, found.other_flops)]


class _FixedRoIs(nn.Module):
    """The part of a detector's pass whose size does not depend on the content of the image."""

    def __init__(self, detector: Detector, box_rois: int, mask_rois: int) -> None:
        super().__init__()
        self.detector, self.box_rois, self.mask_rois = detector, box_rois, mask_rois

    def forward(self, images: Tensor) -> None:
        maps = self.detector.forward_features(images)
        self.detector.rpn.head(maps)
        heads = self.detector.roi_heads
        for head in heads.box_heads:
            head(self._pool(maps[0], self.box_rois, BOX_POOL))
        pooled = self._pool(maps[0], self.mask_rois, MASK_POOL)
        for head in heads.mask_heads:
            head(pooled, torch.zeros(self.mask_rois, dtype=torch.long, device=images.device))

    def _pool(self, x: Tensor, number: int, side: int) -> Tensor:
        return roi_align(x, x.new_zeros(number, 5), side, sampling_ratio=0, aligned=True)


def _count_conv(layer: Any, x: Tensor, y: Tensor) -> int:
    sites = x if isinstance(layer, nn.ConvTranspose2d) else y
    return sites.numel() * layer.weight[0].numel() + (y.numel() if layer.bias is not None else 0)


# The rule behind the published figures: MACs of a layer by its exact class; subclasses count nothing.
PUBLISHED_RULE: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], int]] = {
    nn.Conv2d: _count_conv,
    nn.ConvTranspose2d: _count_conv,
    nn.Linear: lambda layer, x, y: y.numel() * layer.in_features,
    **dict.fromkeys((nn.BatchNorm2d, nn.LayerNorm), lambda layer, x, y: 2 * x.numel()),
    **dict.fromkeys((nn.ReLU, nn.AvgPool2d, nn.MaxPool2d), lambda layer, x, y: x.numel()),
}
# Layers that were of another class, or a function, in the published code, so that its rule did not see them.
UNSEEN: dict[type[nn.Module], str] = {
    nn.LayerNorm: r"attn_(local|global)\.norm\d$",  # timm's subclass of it
    nn.AvgPool2d: r"\.shortcut\.pool$",  # timm's subclass with SAME padding
    nn.BatchNorm2d: r"^roi_heads\.",  # synchronised over GPUs
    nn.ReLU: r"^rpn\.",  # a function
}


def _count_by_published_rule(detector: nn.Module) -> Counter[str]:
    """MACs by the name of the layer; every later forward pass of the detector adds to them."""
    counted: Counter[str] = Counter()
    for name, layer in detector.named_modules():
        kind = type(layer)
        if kind in PUBLISHED_RULE and not (kind in UNSEEN and re.search(UNSEEN[kind], name)):

            def count(layer: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                counted[name] += PUBLISHED_RULE[type(layer)](layer, inputs[0], output)

            layer.register_forward_hook(count)
    return counted
