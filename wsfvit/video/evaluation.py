"""Evaluation of a video model and the baselines on a whole split, over all processes, and its report."""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsfvit.factory.data import Loader, loader_options
from wsfvit.utils.distributed import World, joined_world
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import check_can_be_made, make_folder, to_json, write_text_atomic
from wsfvit.utils.precision import amp_dtype, autocast
from wsfvit.utils.progress import Progress
from wsfvit.utils.tables import csv_text, markdown_table
from wsfvit.video.checkpoint import fill_data_options, load_model
from wsfvit.video.data.loader import MOVING_MNIST, build_eval_loader, find_splits, open_own, open_split
from wsfvit.video.figures import check_animation, write_curves, write_prediction
from wsfvit.video.metrics import DEFINITIONS, VideoMetrics, copy_last_frame, predict_black, repeat_mean_frame

# From frames (B, T_in, C, H, W) and a length to the frames that follow, (B, length, C, H, W).
Predictor = Callable[[Tensor, int], Tensor]
# By name.
BASELINES: dict[str, Predictor] = {
    "copy-last-frame": copy_last_frame,
    "mean-of-input": repeat_mean_frame,
    "black": predict_black,
}
MODEL = "model"
# Columns of summary.csv.
SHOWN_METRICS = ("mse", "mae", "ssim", "psnr")
UNIT = "sequences"


@dataclass(frozen=True)
class VideoResult:
    """Metrics of each predictor by its name, over all processes."""

    metrics: dict[str, dict[str, float]]  # means over all frames, as ``VideoMetrics.compute`` names them
    per_frame: dict[str, dict[str, list[float]]]  # means for each predicted frame
    # First sequences of this process on the CPU: input, prediction of the first predictor, truth.
    kept: list[tuple[Tensor, Tensor, Tensor]]
    sequences_per_s: float  # throughput of all processes, including reading and metrics


# Not inference_mode: a model may cache tensors made here (masks, tables), and training could not use those.
@torch.no_grad()
def evaluate(
    predictors: Mapping[str, Predictor],
    loader: Loader,
    world: World,
    amp_dtype: torch.dtype | None = None,
    title: str = "validate",
    interval: int = 50,
    keep: int = 0,
) -> VideoResult:
    """Evaluate predictors, by name, in one pass over the data; to be called in every process.

    Args:
        predictors: Functions from frames and a length to the frames that follow.
        loader: ``SequenceLoader`` of this process's share of the sequences.
        world: The processes.
        amp_dtype: Mixed precision, or None.
        title, interval: Of the progress lines, and batches between two.
        keep: Number of sequences to keep.

    Raises:
        UserError: there are no sequences, they cannot be read, or predictions or metrics are not finite.
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
    sums = {name: world.sum(own.sums()) for name, own in metrics.items()}
    computed = {name: metrics[name].compute(sums[name]) for name in sums}
    for name, values in computed.items():
        check_finite(values["non_finite_frames"], values["sequences"] * length, title, name)
        if wrong := [key for key, value in values.items() if not math.isfinite(value)]:
            raise UserError(
                f"{title}: {', '.join(wrong)} of '{name}' are not finite: its predictions are far too large"
            )
    per_frame = {name: metrics[name].per_frame(sums[name]) for name in sums}
    return VideoResult(computed, per_frame, kept, progress.per_second)


def check_finite(bad: float, frames: float, title: str, name: str = MODEL) -> None:
    """Raise a ``UserError`` if ``bad`` of the predicted ``frames`` have values that are not finite."""
    if bad:
        raise UserError(
            f"{title}: {bad:.0f} of {frames:.0f} frames predicted by '{name}' are not finite: leave out --amp or "
            "pass --amp-dtype bfloat16, otherwise use another checkpoint"
        )


def describe_data(loader: Loader, result: VideoResult) -> dict[str, Any]:
    """Description of the evaluated data: its name, and the number, length and size of its sequences."""
    return {
        "data": loader.dataset.name,
        "sequences": result.metrics[MODEL]["sequences"],
        "frames_in": loader.frames_in,
        "frames_out": loader.frames_out,
        "channels": loader.dataset.shape[1],
        "size": list(loader.dataset.shape[2:]),
    }


def format_metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown table of ``VideoResult.metrics``, one row per predictor."""
    rows = [(name, *(f"{values[key]:.4g}" for key in DEFINITIONS)) for name, values in metrics.items()]
    return markdown_table(("predictor", *DEFINITIONS), rows, aligned=False)


def write_report(
    folder: Path, name: str, described: Mapping[str, Any], result: VideoResult, movie: str = ".gif"
) -> list[Path]:
    """Write ``NAME.json``, ``NAME_per_frame.csv`` and ``.png``, and a strip and an animation of each kept sequence.

    The folder is created if missing, ``described`` has primitives only, with the entries of ``describe_data``, and
    ``movie`` is the suffix of the animations. Returns the files.

    Raises:
        UserError: a file cannot be written.
    """
    make_folder(folder)
    table, curves, plot = (folder / f"{name}{end}" for end in (".json", "_per_frame.csv", "_per_frame.png"))
    content = {**described, "figures": result.metrics, "definitions": DEFINITIONS}
    write_text_atomic(table, to_json(content, indent=2) + "\n")
    first = described["frames_in"] + 1
    rows = [
        {"predictor": predictor, "frame": first + index, **{key: means[index] for key, means in metrics.items()}}
        for predictor, metrics in result.per_frame.items()
        for index in range(described["frames_out"])
    ]
    write_text_atomic(curves, csv_text(rows, ".6g"))
    write_curves(plot, result.per_frame, first)
    files = [table, curves, plot]
    for number, (frames, prediction, future) in enumerate(result.kept):
        files += write_prediction(folder, f"{name}_{number}", frames, prediction, future, movie)
    return files


def run_validation(args: argparse.Namespace) -> VideoResult:
    """Run the validate command, in one process or in those of ``torchrun``.

    Raises:
        UserError: checkpoint or sequences cannot be read, or do not fit each other.
    """
    if args.out:
        check_animation(args.movie)
        check_can_be_made(Path(args.out))
    with joined_world(args.device) as world:
        model, meta = load_model(args.checkpoint, world.device, args.use_ema, args.trust_checkpoint)
        fill_data_options(args, meta.pop("data"))
        if args.sequences and args.data != MOVING_MNIST:
            raise UserError("--sequences is for Moving MNIST: of your own data all sequences are evaluated")
        config = model.config
        frames = config.frames_in + (args.length or config.frames_out)
        sequences = open_split(args, args.split, frames, config.channels, args.sequences)
        if sequences is None:
            if args.split == "validation" or find_splits(args.data):
                raise UserError(
                    f"'{args.data}' has no folder {args.split}: give the folder to evaluate itself as --data"
                )
            sequences = open_own(args, args.data, frames, config.channels)
            world.log(f"'{args.data}' has no folders of splits: all of it is evaluated")
        for note in sequences.notes:
            world.log(note)
        loader = build_eval_loader(sequences, config.frames_in, loader_options(args, world, args.batch_size))
        keep = args.count if args.out else 0
        predictors = {MODEL: model.predict, **BASELINES}
        result = evaluate(predictors, loader, world, amp_dtype(args), sequences.name, args.log_interval, keep)
        described: dict[str, Any] = {"checkpoint": Path(args.checkpoint).name, **meta, **describe_data(loader, result)}
        world.log(
            f"{sequences.name}, {len(sequences)} sequences, {config.frames_in} frames in, {loader.frames_out} out, "
            f"{result.sequences_per_s:.3g} sequences/s\n{format_metrics(result.metrics)}\n"
            + "\n".join(f"{name}: {text}" for name, text in DEFINITIONS.items())
        )
        if args.out and world.is_main:
            for path in write_report(Path(args.out), args.split, described, result, args.movie):
                print(path)
        return result
