"""The published detectors' heads: their parameter names as ours, and detectors filled as the fixtures were."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from parity import fill_value
from torch import Tensor, nn

from wsfvit.detection.model.config import DetectorConfig, cascade_mask_rcnn_config, mask_rcnn_config
from wsfvit.detection.model.detector import Detector

FIXTURES = Path(__file__).parent / "fixtures" / "detection"
CONFIGS = {"maskrcnn": mask_rcnn_config, "cascade": cascade_mask_rcnn_config}
CHANNELS = (64, 128, 256, 512)
STRIDES = (4, 8, 16, 32)

NECK_AND_RPN = {
    "neck.lateral_convs.": "fpn.inner_blocks.",
    "neck.fpn_convs.": "fpn.layer_blocks.",
    ".conv.": ".0.",
    "rpn_head.rpn_conv.": "rpn.head.conv.0.0.",
    "rpn_head.rpn_cls.": "rpn.head.cls_logits.",
    "rpn_head.rpn_reg.": "rpn.head.bbox_pred.",
}
HEADS = {
    "bbox_head.": "box_heads.",
    "mask_head.": "mask_heads.",
    "fc_cls.": "cls.",
    "fc_reg.": "reg.",
    "upsample.": "predictor.conv5_mask.",
    "conv_logits.": "predictor.mask_fcn_logits.",
    ".conv.": ".0.",
    ".bn.": ".1.",
    "shared_convs.": "hidden.",
}


class FixedBackbone(nn.Module):
    """Gives the same maps whatever it is shown."""

    def __init__(self, maps: list[Tensor], channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        self.maps, self.channels, self.strides = maps, channels, STRIDES

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps


def our_name(key: str, kind: str) -> str:
    """Name of a published parameter in our detector."""
    if not key.startswith("roi_head."):
        for theirs, ours in NECK_AND_RPN.items():
            key = key.replace(theirs, ours)
        return key
    key = key.removeprefix("roi_head.")
    if kind == "maskrcnn":  # its only stage has no number
        key = key.replace("_head.", "_head.0.", 1)
    for theirs, ours in HEADS.items():
        key = key.replace(theirs, ours)
    fully_connected = "hidden.5." if kind == "cascade" else "hidden.fc6."
    key = key.replace("shared_fcs.0.", fully_connected).replace("shared_fcs.1.", "hidden.fc7.")
    return f"roi_heads.{key}"


def build_published_detector(kind: str) -> Detector:
    """The detector of a fixture, in evaluation mode, with its weights and over its feature maps."""
    maps = [
        torch.randn(1, channels, 224 // stride, 448 // stride, generator=torch.Generator().manual_seed(10 + i))
        for i, (channels, stride) in enumerate(zip(CHANNELS, STRIDES, strict=True))
    ]
    config: DetectorConfig = CONFIGS[kind]()
    with torch.device("meta"):
        detector = Detector(config, FixedBackbone(maps)).to_empty(device="cpu")
    detector.load_state_dict(published_weights(kind), strict=True)
    return detector.eval()


@cache
def published_weights(kind: str) -> dict[str, Tensor]:
    shapes = json.loads((FIXTURES / f"det_heads_{kind}_state_keys.json").read_text())
    weights = {}
    for key, shape in shapes.items():
        value = fill_value(key, torch.empty(shape)) if shape else torch.tensor(0)
        if "rpn_reg" in key or "fc_reg" in key:
            value = value * 0.1
        if key.endswith("conv_logits.weight"):
            value = value * 10
        if key.endswith("fc_cls.weight"):
            value = value * (12 if kind == "cascade" else 2)
        weights[our_name(key, kind)] = value
    return weights


def load_fixture(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz") as data:
        return dict(data)
