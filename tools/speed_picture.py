"""docs/speed.png: images per second over MACs, and the bandwidth of each Haar transform beside a copy's."""

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DTYPES
from benchmarks.models import FUSED_PREFIX, PREFIX, create_timm_model
from tools.report_tables import (
    MODELS,
    TRANSFORMS,
    Record,
    describe_run,
    machine,
    merge_models,
    merge_transforms,
    model_label,
    read_groups,
)
from wsfvit.analysis.flop_counter import count_complexity
from wsfvit.utils.figures import new_panels, plain_log_scale


@cache
def count_macs(name: str, img_size: int) -> int:
    """MACs of one image through a model of `benchmarks.models`.

    The published and the fused computation are given their model's, so that equal work stands at an equal place.
    """
    with torch.device("meta"):
        model = create_timm_model(name.removeprefix(PREFIX).removeprefix(FUSED_PREFIX), img_size)
        return count_complexity(model, torch.zeros(1, 3, img_size, img_size)).macs


def moved_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes that a decimated Haar transform must read and write: its input (B, C, H, W) and four subbands."""
    *outer, H, W = shape
    return prod(outer) * (H * W + 4 * -(-H // 2) * -(-W // 2)) * DTYPES[dtype].itemsize


def draw_speed(root: Path) -> Any:
    """A figure with a row of two panels for the CPU, and one for the GPU if ``root`` has both kinds of its records."""
    rows = list(_machines(root))
    figure, axes = new_panels(len(rows), 2, 4.4, 2.9)
    for row, (models, transforms) in zip(axes, rows, strict=True):
        _draw_models(row[0], models)
        _draw_bandwidth(row[1], transforms)
    return figure


def _machines(root: Path) -> Iterator[tuple[list[Record], list[Record]]]:
    """Records of models and of transforms, by machine: the CPU's, then a GPU's."""
    models, transforms = list(read_groups(root, MODELS)), list(read_groups(root, TRANSFORMS))
    yield models[0], transforms[0]
    if len(models) > 1 and len(transforms) > 1:
        yield max(models[1:], key=lambda records: len(merge_models(records, "inference"))), transforms[1]


def _draw_models(axis: Any, records: list[Record]) -> None:
    img_size = records[0]["settings"]["img_size"]
    for index, (name, result) in enumerate(merge_models(records, "inference").items()):
        marker = "x" if name.startswith(PREFIX) else "^" if name.startswith(FUSED_PREFIX) else "o"
        macs = count_macs(name, img_size) / 1e9
        label = model_label(name).replace("`", "").removeprefix("timm ")
        axis.plot(macs, result["images_per_second"], marker, color=f"C{index % 10}", markersize=7, label=label)
    axis.set(xlabel="MACs per image (G)", ylabel="images/s", ylim=(0, None))
    axis.set_title(f"inference, {describe_run(records)}", fontsize=9)
    axis.legend(fontsize=7, frameon=False, loc="best")
    _finish(axis)


def _draw_bandwidth(axis: Any, records: list[Record]) -> None:
    dtype = records[0]["settings"]["dtype"]
    times = merge_transforms(records, "dwt")
    forward = {shape: by_name for (shape, backward), by_name in times.items() if not backward}
    names = list(dict.fromkeys(name for by_name in forward.values() for name in by_name))
    for shape, by_name in forward.items():
        speeds = [moved_bytes(shape, dtype) / seconds / 1e9 for seconds in by_name.values()]
        axis.plot(speeds, [names.index(name) for name in by_name], "o", label="x".join(map(str, shape)), alpha=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("bytes read + written per second (GB/s)")
    plain_log_scale(axis)
    axis.set_title(f"Haar DWT, forward, {dtype}, {machine(records)}", fontsize=9)
    axis.legend(fontsize=7, frameon=False, loc="best")
    _finish(axis)


def _finish(axis: Any) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
