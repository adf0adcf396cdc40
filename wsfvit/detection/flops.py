"""``python -m wsfvit.detection flops``: what a detector costs, part by part, by the published rule and by ours.

One pass of one image: backbone, pyramid, proposal head, and the RoI heads on fixed numbers of RoIs. Choosing proposals
and detections (sorting, suppression) depends on the picture and is left out of both counts.
"""

import argparse
import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from wsfvit.analysis.flop_counter import count_complexity
from wsfvit.analysis.flops import CONVENTION, markdown_head, markdown_row
from wsfvit.cli.common import build_parser, positive_int
from wsfvit.detection.model.config import KINDS, DetectorConfig
from wsfvit.detection.model.detector import Detector, build_detector
from wsfvit.detection.model.heads import BOX_POOL, MASK_POOL
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import write_text_atomic

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
ORIGIN = (
    "Published: the figures printed in the WSF-ViT release of February 2026. Published rule: how they were counted, "
    "layer by layer as mmcv 1.7 does, which knows convolutions, linear layers, batch and layer norms, ReLU and pooling "
    "by their exact classes. It leaves out what is no such layer: attention products, strided convolutions with SAME "
    "padding, most norms, GELU, the Haar transform."
)
HEADS = (
    "The tiny backbone has the classifier's inter-subband heads (2, 4, 8, 16). With the published detector's (4, 8, "
    "16, 32) its channel attention takes half the products, which the published rule does not see."
)
OMITTED = (
    "Both counts take fixed numbers of RoIs, and leave out the choice of proposals and detections (sorting, "
    "suppression), which depends on the picture."
)
COLUMNS = ("detector", "backbone", "part", "parameters", "published_rule_macs", "macs", "flops_outside_macs")


@dataclass(frozen=True)
class PartCost:
    """What one part of a detector costs.

    Attributes:
        name: A key of `PARTS`, or "total".
        params: Number of parameters.
        published: Multiply-accumulates by the published rule.
        macs: Multiply-accumulates by the rules of `wsfvit.analysis.flop_rules`.
        other: Floating-point operations outside ``macs``, by the same rules; RoIAlign is in the total alone.
    """

    name: str
    params: int
    published: int
    macs: int
    other: int


# Of each kind of detector and backbone.
Counts = dict[tuple[str, str], list[PartCost]]


def count_detector(
    config: DetectorConfig, size: tuple[int, int] = (1120, 896), box_rois: int = 1000, mask_rois: int = 100
) -> list[PartCost]:
    """Counts one image of ``size`` (H, W), on the meta device: nothing is computed.

    Args:
        config: The detector.
        size: Height and width of the image; padded to what the backbone takes.
        box_rois: RoIs that every box head sees.
        mask_rois: RoIs that every mask head sees.

    Returns:
        The parts, in the order of `PARTS`, and the total.
    """
    with torch.device("meta"):
        detector = build_detector(config).eval()
        images = torch.zeros(1, 3, *size)
    with _published_rule(detector) as published:
        found = count_complexity(_FixedRoIs(detector, box_rois, mask_rois), images)
    by_name = {module.name: module for module in found.modules}
    parts = []
    for name, path in PARTS.items():
        module = by_name[f"detector.{path}"]
        layers = sum(macs for layer, macs in published.items() if f"{layer}.".startswith(f"{path}."))
        parts.append(PartCost(name, module.params, layers, module.cost.macs, module.cost.other))
    total = PartCost(TOTAL, found.params, sum(published.values()), found.macs, found.other_flops)
    return [*parts, total]


class _FixedRoIs(nn.Module):
    """The part of a detector's pass whose size does not depend on what the picture shows."""

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


def _conv(layer: Any, x: Tensor, y: Tensor) -> int:
    sites = x if isinstance(layer, nn.ConvTranspose2d) else y
    return sites.numel() * layer.weight[0].numel() + (y.numel() if layer.bias is not None else 0)


def _norm(layer: Any, x: Tensor, y: Tensor) -> int:
    return 2 * x.numel()


def _element(layer: Any, x: Tensor, y: Tensor) -> int:
    return x.numel()


# The rule that the published figures were counted with: MACs of a layer by its exact class, of subclasses nothing.
PUBLISHED_RULE: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], int]] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv,
    nn.Linear: lambda layer, x, y: y.numel() * layer.in_features,
    nn.BatchNorm2d: _norm,
    nn.LayerNorm: _norm,
    nn.ReLU: _element,
    nn.AvgPool2d: _element,
    nn.MaxPool2d: _element,
}
# Layers that were of another class, or a function, in the published code, so that its rule did not see them.
UNSEEN: dict[type[nn.Module], str] = {
    nn.LayerNorm: r"attn_(local|global)\.norm\d$",  # timm's subclass of it
    nn.AvgPool2d: r"\.shortcut\.pool$",  # timm's subclass with SAME padding
    nn.BatchNorm2d: r"^roi_heads\.",  # synchronised over GPUs
    nn.ReLU: r"^rpn\.",  # a function
}


@contextmanager
def _published_rule(detector: nn.Module) -> Iterator[Counter[str]]:
    """Counts what runs inside the block: MACs by the name of the layer."""
    counted: Counter[str] = Counter()
    handles = []
    for name, layer in detector.named_modules():
        kind = type(layer)
        if kind in PUBLISHED_RULE and not (kind in UNSEEN and re.search(UNSEEN[kind], name)):

            def count(layer: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                counted[name] += PUBLISHED_RULE[type(layer)](layer, inputs[0], output)

            handles.append(layer.register_forward_hook(count))
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


def run_flops(args: argparse.Namespace) -> None:
    """Count the detectors that the command line asks for, prints the tables, and writes them on request.

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
        *_totals(counts, (*size, args.box_rois, args.mask_rois, args.num_classes) == PUBLISHED_SETTING),
        "",
        *_breakdown(counts),
        *(f"\n{text}" for text in (ORIGIN, HEADS, CONVENTION, OMITTED)),
    ]
    print("", *lines, sep="\n")
    if folder:
        command = " ".join(["wsfvit detection", *sys.argv[sys.argv.index("flops") :]])
        origin = f"Counted by `{command}` with torch {torch.__version__} and timm {timm.__version__}.\n"
        write_text_atomic(folder / "flops.md", "\n".join([origin, *lines, ""]))
        write_text_atomic(folder / "flops.csv", _csv(counts))
        print(f"\ntables: {folder / 'flops.md'}, {folder / 'flops.csv'}")


def flops_parser() -> argparse.ArgumentParser:
    """Parser of the flops command."""
    parser = build_parser("Count a detector's parameters and multiply-accumulates, part by part.")
    parser.add_argument(
        "--all", action="store_true", help="the four published detectors, whatever --detector and --model say"
    )
    parser.add_argument("--detector", default="mask_rcnn", choices=KINDS, help="kind of detector")
    parser.add_argument("--model", default="wsfvit_t_224", metavar="NAME", help="backbone, any of timm's too")
    parser.add_argument("--num-classes", type=positive_int, default=80, metavar="K", help="number of categories")
    parser.add_argument(
        "--img-size", type=positive_int, nargs=2, default=(1120, 896), metavar=("H", "W"), help="height and width"
    )
    parser.add_argument("--box-rois", type=positive_int, default=1000, metavar="N", help="RoIs of each box head")
    parser.add_argument("--mask-rois", type=positive_int, default=100, metavar="N", help="RoIs of each mask head")
    parser.add_argument("--output", default="", metavar="FOLDER", help="also write flops.md and flops.csv there")
    return parser


def _totals(counts: Counts, own_setting: bool) -> Iterator[str]:
    """Totals of each detector beside the published ones, which hold for their own setting only."""
    yield from markdown_head(
        (
            *("detector", "backbone", "params (M)", "published params (M)"),
            *("published MACs (G)", "MACs, published rule (G)", "MACs (G)", "FLOPs outside MACs (G)"),
        )
    )
    for (kind, backbone), parts in counts.items():
        total = parts[-1]
        params, macs = PUBLISHED.get((kind, backbone), ("", "")) if own_setting else ("", "")
        yield markdown_row(
            (
                *(kind, backbone, f"{total.params / 1e6:.3f}", str(params)),
                *(str(macs), _giga(total.published), _giga(total.macs), _giga(total.other)),
            )
        )


def _breakdown(counts: Counts) -> Iterator[str]:
    yield from markdown_head(
        ("detector", "backbone", "part", "params (M)", "MACs, published rule (G)", "MACs (G)", "share of MACs (%)")
    )
    for names, parts in counts.items():
        whole = parts[-1].macs
        for p in parts[:-1]:
            share = f"{100 * p.macs / whole:.1f}"
            yield markdown_row((*names, p.name, f"{p.params / 1e6:.3f}", _giga(p.published), _giga(p.macs), share))


def _giga(value: int) -> str:
    return f"{value / 1e9:.2f}"


def _csv(counts: Counts) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for names, parts in counts.items():
        writer.writerows((*names, p.name, p.params, p.published, p.macs, p.other) for p in parts)
    return text.getvalue()
