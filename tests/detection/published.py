"""The published heads' parameter names as ours, and the fill rule of the fixtures that were made with them."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wsfvit.detection.config import DetectorConfig, cascade_mask_rcnn_config, mask_rcnn_config
from wsfvit.detection.detector import Detector

FIXTURES = Path(__file__).parents[1] / "fixtures/detection"
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
    "mask_heads.{}.convs.": "mask_heads.{}.convs.",
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


def fill_value(key: str, shape: list[int]) -> Tensor:
    """The fixtures' value of a published parameter: random, seeded by its name."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if len(shape) >= 2:
        return noise / (noise.numel() / shape[0]) ** 0.5
    return 1 + 0.1 * noise if key.endswith("weight") else 0.1 * noise


def build_published_detector(kind: str) -> Detector:
    """The detector of a fixture, with its weights and over its feature maps."""
    maps = [
        torch.randn(1, channels, 224 // stride, 448 // stride, generator=torch.Generator().manual_seed(10 + i))
        for i, (channels, stride) in enumerate(zip(CHANNELS, STRIDES, strict=True))
    ]
    config: DetectorConfig = CONFIGS[kind]()
    detector = Detector(config, FixedBackbone(maps))
    detector.load_state_dict(published_weights(kind), strict=True)
    return detector.eval()


def published_weights(kind: str) -> dict[str, Tensor]:
    shapes = json.loads((FIXTURES / f"det_heads_{kind}_state_keys.json").read_text())
    weights = {}
    for key, shape in shapes.items():
        value = fill_value(key, shape) if shape else torch.tensor(0)
        if key.endswith("running_var"):
            value = RUNNING_VAR(value)
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
