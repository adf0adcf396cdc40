"""``python -m wsfvit.video predict``: predicted frames as strips and animations."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from wsfvit.utils.distributed import resolve_device
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import make_folder, refuse_overwriting, write_atomic
from wsfvit.utils.precision import amp_dtype, autocast
from wsfvit.video.checkpoint import fill_data_options, load_model
from wsfvit.video.data.loader import MOVING_MNIST, open_own, open_split
from wsfvit.video.data.sequences import ClipSequences, SequenceDataset
from wsfvit.video.evaluation import check_finite
from wsfvit.video.figures import check_animation, write_prediction
from wsfvit.video.model.simvp import SimVPConfig


def run_prediction(args: argparse.Namespace) -> list[Path]:
    """Run the predict command; return the files written.

    Raises:
        UserError: checkpoint or sequences cannot be read or do not fit each other, or predictions are not finite.
    """
    check_animation(args.movie)
    device = resolve_device(args.device)
    model, meta = load_model(args.checkpoint, device, args.use_ema, args.trust_checkpoint)
    fill_data_options(args, meta["data"])
    config = model.config
    length = args.length or config.frames_out
    sequences = _open_sequences(args, config, length)
    folder, files, predictions = Path(args.out), [], []
    make_folder(folder)
    refuse_overwriting("--out", folder.glob("prediction*"), sequences.sources)
    count = min(args.count, len(sequences))
    print(f"{sequences.name}: {count} of {len(sequences)} sequences")
    for index in range(count):
        frames, future = sequences[index].tensor_split([config.frames_in])
        with torch.no_grad(), autocast(device, amp_dtype(args)):
            raw = model.predict(frames.to(device)[None], length)[0].float()
        check_finite(int((~raw.isfinite()).flatten(1).any(1).sum()), length, f"sequence {index}")
        prediction = raw.clamp(0, 1).cpu()
        truth = future if len(future) else None
        files += write_prediction(folder, f"prediction_{index}", frames, prediction, truth, args.movie)
        predictions.append(prediction.numpy())
        print(*files[-2:], flush=True)
    if args.save_npy:
        files.append(folder / "predictions.npy")
        write_atomic(files[-1], lambda file: np.save(file, np.stack(predictions)))
        print(files[-1])
    return files


def _open_sequences(args: argparse.Namespace, config: SimVPConfig, length: int) -> SequenceDataset:
    """Open sequences of input and truth; where the truth is unknown, only the last frames of each clip, as input."""
    if args.data == MOVING_MNIST:
        if args.from_end:
            raise UserError("--from-end is for sequences of your own: Moving MNIST has no end")
        sequences = open_split(args, "test", config.frames_in + length, config.channels)
        assert sequences is not None  # Moving MNIST has all splits
        return sequences
    ends = open_own(args, args.data, config.frames_in, config.channels, from_end=True)
    print(*(f"{note}\n" for note in ends.notes), sep="", end="")
    whole = replace(ends.cut, frames=config.frames_in + length, from_end=False)
    short = next((clip for clip in ends.clips if clip.num_frames < whole.span), None)
    if not (args.from_end or short):
        return ClipSequences(ends.name, ends.clips, whole)
    why = f": '{short.name}' has {short.num_frames} frames, a truth would take {whole.span}" if short else ""
    print(f"predicting what follows the last frames{'' if args.from_end else why}")
    return ends
