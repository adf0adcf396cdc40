"""A video model and the baselines over a whole split, on all processes together; what is written about them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsfvit.factory.data import Loader
from wsfvit.train.loggers import csv_text
from wsfvit.utils.distributed import World
from wsfvit.utils.files import make_folder, write_text_atomic
from wsfvit.utils.precision import autocast
from wsfvit.utils.progress import Progress
from wsfvit.video.metrics import VideoMetrics, copy_last_frame, predict_black, repeat_mean_frame
from wsfvit.video.model.simvp import SimVP
from wsfvit.video.pictures import write_curves, write_prediction

# From frames (B, T_in, C, H, W) and a length to the frames that follow, (B, length, C, H, W).
Predictor = Callable[[Tensor, int], Tensor]
# What every model must beat, by name.
BASELINES: dict[str, Predictor] = {
    "copy-last-frame": copy_last_frame,
    "mean-of-input": repeat_mean_frame,
    "black": predict_black,
}
MODEL = "model"
# Columns of summary.csv.
SHOWN_METRICS = ("mse", "mae", "ssim", "psnr")
UNIT = "sequences"
DEFINITIONS = {
    "mse": "mean over frames of the sum of squared errors over a frame's values in 0..1, not clipped",
    "mae": "likewise of absolute errors",
    "ssim": "structural similarity, data range 1, uniform 7x7 window, prediction clipped to 0..1",
    "psnr": "dB against a peak of 1, prediction clipped to 0..1, at most 100 for a frame",
    "psnr_uint8": "the figure that published tables up to SimVPv2 call PSNR: its difference wraps at 256",
    "mse_pixel": "mse over the number of values of a frame",
    "mae_pixel": "mae over the number of values of a frame",
}


@dataclass(frozen=True)
class Measured:
    """What came out for each predictor.

    Attributes:
        figures: Its figures over all frames, as ``VideoMetrics.compute`` names them.
        per_frame: Its figures for each predicted frame.
        kept: The first sequences of this process: frames, prediction of the first predictor, future; on the CPU.
        sequences_per_s: Speed of all processes, with reading and metrics.
    """

    figures: dict[str, dict[str, float]]
    per_frame: dict[str, dict[str, list[float]]]
    kept: list[tuple[Tensor, Tensor, Tensor]]
    sequences_per_s: float


# Not inference_mode: a model may keep what it computed here (masks, tables), and training could not use that then.
@torch.no_grad()
def measure(
    predictors: Mapping[str, Predictor],
    loader: Loader,
    world: World,
    amp_dtype: torch.dtype | None = None,
    title: str = "validate",
    interval: int = 50,
    keep: int = 0,
) -> Measured:
    """Measures all predictors in one pass; every process must call it, and gets the figures of all together.

    Args:
        predictors: By name.
        loader: This process's share of the sequences, a ``SequenceLoader``.
        world: The processes.
        amp_dtype: Mixed precision, or None.
        title: Of the progress.
        interval: Batches between two progress lines.
        keep: Sequences to keep.

    Raises:
        UserError: there are no sequences, or they cannot be read.
    """
    _, channels, height, width = loader.dataset.shape
    length, device = loader.frames_out, world.device
    metrics = {name: VideoMetrics(length, channels, (height, width), device) for name in predictors}
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    with Progress(title, len(loader), interval, shown=world.is_main, unit=UNIT) as progress:
        for frames, future in loader:
            predictions = {}
            for name, predict in predictors.items():
                with autocast(device, amp_dtype):
                    predictions[name] = predict(frames, length)
                metrics[name].update(predictions[name], future)
            first = next(iter(predictions.values()))
            for index in range(min(keep - len(kept), len(frames))):
                kept.append((frames[index].cpu(), first[index].float().cpu(), future[index].cpu()))
            progress.step(len(frames) * world.size)
    sums = {name: world.sum(found.sums()) for name, found in metrics.items()}
    return Measured(
        {name: metrics[name].compute(sums[name]) for name in sums},
        {name: metrics[name].per_frame(sums[name]) for name in sums},
        kept,
        progress.per_second,
    )


@dataclass
class VideoValidation:
    """Judges a model by the validation sequences; called as ``Plan.validate`` says.

    Attributes:
        world: The processes.
        amp_dtype: Mixed precision, or None.
        log_interval: Batches between two progress lines.
        keep: Sequences to keep for pictures.
        kept: As ``Measured.kept``, of the last call.
    """

    world: World
    amp_dtype: torch.dtype | None
    log_interval: int
    keep: int = 0
    kept: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, model: nn.Module, loader: Loader, title: str) -> dict[str, float]:
        """Returns ``SHOWN_METRICS``."""
        assert isinstance(model, SimVP)
        predictors = {MODEL: model.predict}
        found = measure(predictors, loader, self.world, self.amp_dtype, title, self.log_interval, self.keep)
        self.kept = found.kept
        return {name: found.figures[MODEL][name] for name in SHOWN_METRICS}


def describe_data(loader: Loader, measured: Measured) -> dict[str, Any]:
    """What was measured on: name of the data, number, length and size of the sequences."""
    dataset = loader.dataset
    return {
        "data": dataset.name,
        "sequences": measured.figures[MODEL]["sequences"],
        "frames_in": loader.frames_in,
        "frames_out": loader.frames_out,
        "channels": dataset.shape[1],
        "size": list(dataset.shape[2:]),
    }


def markdown_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each predictor, a column for each figure."""
    names = list(DEFINITIONS)
    lines = [("", *names), ("---",) * (len(names) + 1)]
    for predictor, values in figures.items():
        lines.append((predictor, *(f"{values[name]:.4g}" for name in names)))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_report(
    folder: Path, name: str, described: Mapping[str, Any], measured: Measured, movie: str = ".gif"
) -> list[Path]:
    """Writes ``NAME.json`` with all figures, ``NAME_per_frame.csv`` and .png, and strip and animation of what was kept.

    Args:
        folder: Gets the files, made if needed.
        name: How they begin.
        described: What was measured, primitives only.
        measured: What came out.
        movie: Suffix of the animations.

    Returns:
        The files.

    Raises:
        UserError: a file cannot be written.
    """
    make_folder(folder)
    table, curves, picture = (folder / f"{name}{end}" for end in (".json", "_per_frame.csv", "_per_frame.png"))
    content = {**described, "figures": measured.figures, "definitions": DEFINITIONS}
    write_text_atomic(table, json.dumps(content, indent=2) + "\n")
    first = described["frames_in"] + 1
    rows = [
        {"predictor": predictor, "frame": first + place, **{key: values[place] for key, values in figures.items()}}
        for predictor, figures in measured.per_frame.items()
        for place in range(described["frames_out"])
    ]
    write_text_atomic(curves, csv_text(rows))
    write_curves(picture, measured.per_frame, first)
    files = [table, curves, picture]
    for number, (frames, prediction, future) in enumerate(measured.kept):
        files += write_prediction(folder, f"{name}_{number}", frames, prediction, future, movie)
    return files
