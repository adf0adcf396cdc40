"""Training, validation and test sequences from a command's arguments."""

import argparse
from pathlib import Path
from typing import Literal, cast

from wsfvit.utils.errors import UserError
from wsfvit.video.data.moving_mnist import Motion, Split, open_moving_mnist, open_official_test
from wsfvit.video.data.sequences import ClipSequences, Cut, SequenceDataset, open_sequences

MOVING_MNIST = "moving-mnist"
FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


def open_split(
    args: argparse.Namespace,
    split: Split,
    frames: int,
    channels: int,
    count: int | None = None,
    given: str | None = None,
) -> SequenceDataset | None:
    """Opens the sequences of one split, ``frames`` long.

    Args:
        args: Those of ``args.add_data``; for training, ``seed`` too.
        split: Which one.
        frames: Frames of a sequence, input and future.
        channels: Channels of a frame.
        count: Number of Moving MNIST sequences (default: ``NUM_SEQUENCES``).
        given: Where a user's own sequences of this split lie (default: in a folder of its name).

    Returns:
        The sequences; None where a user's own data has no such folder. Training falls back on all of it.

    Raises:
        UserError: they cannot be read, or do not fit.
    """
    if args.data == MOVING_MNIST:
        return _open_moving_mnist(args, split, frames, channels, count)
    root = Path(args.data)
    places = [Path(given)] if given else [root / name for name in FOLDERS[split] if (root / name).is_dir()]
    places += [root] if split == "train" else []
    return open_own(args, places[0], frames, channels) if places else None


def _open_moving_mnist(
    args: argparse.Namespace, split: Split, frames: int, channels: int, count: int | None
) -> SequenceDataset:
    if channels != 1:
        raise UserError(f"Moving MNIST has one channel: pass --channels 1, not {channels}")
    motion = Motion(frames, args.size or Motion.size, args.digits, args.speed)
    if split == "test" and args.official_test is not None:
        if motion != Motion(min(frames, Motion.frames)) or count is not None:
            raise UserError(
                f"--official-test has {Motion.frames} frames of 64x64 pixels, with two digits at speed {Motion.speed}: "
                "leave out what asks for another test"
            )
        return open_official_test(args.official_test, frames)
    return open_moving_mnist(split, args.mnist, motion, count, args.seed if split == "train" else 0)


def open_own(
    args: argparse.Namespace, path: str | Path, frames: int, channels: int, from_end: bool = False
) -> ClipSequences:
    """Opens a user's own sequences.

    Args:
        args: Those of ``args.add_data``.
        path: See ``open_sequences``.
        frames: Frames of a sequence.
        channels: Channels of a frame.
        from_end: The last frames of each clip alone.

    Raises:
        UserError: they cannot be read, or do not have ``channels`` channels.
    """
    if channels not in (1, 3):
        raise UserError(f"'{path}': frames are read with 1 or 3 channels; the model has {channels}")
    size = None if args.size is None else (args.size[0], args.size[1])
    cut = Cut(frames, args.frame_step, args.stride, size, from_end)
    return open_sequences(path, cut, cast(Literal[1, 3], channels), args.layout)
