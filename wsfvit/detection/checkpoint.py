"""Checkpoints of detectors: the description in them, and the detector built from it."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from wsfvit.checkpoint.io import RESERVED_KWARGS, apply_state_dict, load_state_dict_file
from wsfvit.detection.data.transforms import EvalTransform, Normalize
from wsfvit.detection.model.config import DetectorConfig, StageConfig
from wsfvit.detection.model.detector import Detector, build_detector
from wsfvit.utils.errors import UserError

TASK = "detection"
# Layers with weights for each category.
CATEGORY_LAYERS = (".cls.", ".reg.", ".mask_fcn_logits.")


@dataclass(frozen=True)
class Setting:
    """How images are prepared for a detector, and what its labels mean."""

    categories: dict[int, str]  # id to name, sorted by id; the index of an id is its label
    transform: EvalTransform  # resizing in evaluation
    normalize: Normalize  # mean and standard deviation
    multiple: int  # batches are padded to a multiple of it, in pixels

    @property
    def names(self) -> list[str]:
        """Names of the categories, by label."""
        return list(self.categories.values())


def describe(config: DetectorConfig, setting: Setting) -> dict[str, Any]:
    """Description for a checkpoint: ``task`` and ``config``, primitives only."""
    described = {
        "detector": {**asdict(config), "backbone_options": dict(config.backbone_options)},
        "categories": list(setting.categories.items()),
        **asdict(setting.transform),
        **asdict(setting.normalize),
        "multiple": setting.multiple,
    }
    return {"task": TASK, "config": described}


def read_description(described: Mapping[str, Any], path: str | os.PathLike[str]) -> tuple[DetectorConfig, Setting]:
    """Reads the ``config`` that ``describe`` made, or raises a ``UserError`` that names ``path``."""
    try:
        fields = dict(described["detector"])
        stages = ({**stage, "box_stds": tuple(stage["box_stds"])} for stage in fields["stages"])
        fields["stages"] = tuple(StageConfig(**stage) for stage in stages)
        reserved = set(RESERVED_KWARGS) & set(fields["backbone_options"])
        if reserved:
            raise UserError(f"checkpoint '{path}': its backbone_options may not set {', '.join(sorted(reserved))}")
        setting = Setting(
            categories={int(key): str(name) for key, name in described["categories"]},
            transform=EvalTransform(int(described["short_side"]), int(described["long_side"])),
            normalize=Normalize(tuple(described["mean"]), tuple(described["std"])),
            multiple=int(described["multiple"]),
        )
        return DetectorConfig(**fields), setting
    except (KeyError, TypeError, ValueError) as err:
        raise UserError(f"checkpoint '{path}' does not describe how to build its detector ({err!r})") from err


def load_detector(
    path: str | os.PathLike[str],
    device: torch.device,
    use_ema: bool = False,
    trust: bool = False,
    short_side: int | None = None,
    long_side: int | None = None,
    max_detections: int | None = None,
) -> tuple[Detector, Setting, dict[str, Any]]:
    """Builds the detector of a checkpoint of the train command, in eval mode on ``device``.

    Args:
        path, use_ema, trust: See ``load_state_dict_file``.
        device: Device of the detector.
        short_side, long_side: Of the images, in pixels (default: the checkpoint's).
        max_detections: Detections per image, likewise.

    Returns:
        Detector, setting, and metadata of the file: ``weights`` ("ema" or "raw") and, if there, ``epoch``.

    Raises:
        UserError: the file cannot be read, or holds no detector.
    """
    state_dict, meta = load_state_dict_file(path, use_ema=use_ema, trust=trust, task=TASK)
    config, setting = read_description(meta.get("config", {}), path)
    if max_detections is not None:
        config = replace(config, max_detections=max_detections)
    given = {"short_side": short_side, "long_side": long_side}
    sides = {key: side for key, side in given.items() if side is not None}
    setting = replace(setting, transform=replace(setting.transform, **sides))
    detector = build_detector(config)
    apply_state_dict(detector, state_dict, path)
    return detector.to(device).eval(), setting, meta


def start_from(detector: Detector, path: str | os.PathLike[str], trust: bool = False) -> list[str]:
    """Loads another detector's weights, for fine-tuning.

    Where the number of categories differs, layers with weights for each category keep their own; returns their keys.

    Raises:
        UserError: the file holds no detector, or one that does not fit.
    """
    state_dict, _ = load_state_dict_file(path, use_ema=True, trust=trust, task=TASK)
    kept = {
        key: value
        for key, value in detector.state_dict().items()
        if any(part in key for part in CATEGORY_LAYERS) and key in state_dict and value.shape != state_dict[key].shape
    }
    apply_state_dict(detector, {**state_dict, **kept}, path)
    return list(kept)
