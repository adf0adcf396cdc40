"""``python -m wsfvit.video predict``: how sequences go on, as strips of frames and animations."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsfvit.utils.distributed import resolve_device
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import make_folder, write_atomic
from wsfvit.utils.precision import amp_dtype, autocast
from wsfvit.video.checkpoint import fill_data_options, load_model
from wsfvit.video.data.sequences import ClipSequences, SequenceDataset
from wsfvit.video.data.splits import MOVING_MNIST, open_own, open_split
from wsfvit.video.model.simvp import SimVP, SimVPConfig
from wsfvit.video.pictures import check_animation, write_prediction


def run_prediction(args: argparse.Namespace) -> list[Path]:
    """Predicts the first sequences, and writes and returns the files.

    Raises:
        UserError: checkpoint or sequences cannot be read, or do not fit each other.
    """
    check_animation(args.movie)
    device = resolve_device(args.device)
    model, meta = load_model(args.checkpoint, device, args.use_ema, args.trust_checkpoint)
    fill_data_options(args, meta["data"])
    config = model.config
    length = args.length or config.frames_out
    sequences = open_seen(args, config, length)
    folder, files, predictions = Path(args.out), [], []
    make_folder(folder)
    print(f"{sequences.name}: {min(args.count, len(sequences))} of {len(sequences)} sequences")
    for index in range(min(args.count, len(sequences))):
        sequence = sequences[index]
        frames, future = sequence[: config.frames_in], sequence[config.frames_in :]
        prediction = predict(model, frames.to(device), length, amp_dtype(args)).cpu()
        truth = future if len(future) else None
        files += write_prediction(folder, f"prediction_{index}", frames, prediction, truth, args.movie)
        predictions.append(prediction.numpy())
        print(*files[-2:], flush=True)
    if args.save_npy:
        files.append(folder / "predictions.npy")
        write_atomic(files[-1], lambda file: np.save(file, np.stack(predictions)))
        print(files[-1])
    return files


@torch.no_grad()
def predict(model: SimVP, frames: Tensor, length: int, lower: torch.dtype | None = None) -> Tensor:
    """How one sequence (T_in, C, H, W) goes on: float32 (length, C, H, W), clipped to [0, 1]."""
    with autocast(frames.device, lower):
        return model.predict(frames[None], length)[0].float().clamp(0, 1)


def open_seen(args: argparse.Namespace, config: SimVPConfig, length: int) -> SequenceDataset:
    """Opens the sequences with ``length`` true frames behind the input, or, if unknown, the last frames of each clip.

    Raises:
        UserError: they cannot be read, or are shorter than the input.
    """
    if args.data == MOVING_MNIST:
        if args.from_end:
            raise UserError("--from-end is for sequences of your own: Moving MNIST has no end")
        sequences = open_split(args, "test", config.frames_in + length, config.channels)
        assert sequences is not None  # Moving MNIST has all splits
        return sequences
    ends = open_own(args, args.data, config.frames_in, config.channels, from_end=True)
    whole = replace(ends.cut, frames=config.frames_in + length, from_end=False)
    short = [clip for clip in ends.clips if clip.num_frames < whole.span]
    if not (args.from_end or short):
        return ClipSequences(ends.name, ends.clips, whole)
    why = (
        ""
        if args.from_end
        else f": '{short[0].name}' has {short[0].num_frames} frames, a truth would take {whole.span}"
    )
    print(f"predicting what follows the last frames{why}")
    return ends
