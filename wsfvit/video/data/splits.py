"""Training, validation and test sequences from the arguments of a command."""

import argparse
from pathlib import Path

from wsfvit.utils.errors import UserError
from wsfvit.video.data.moving_mnist import Motion, Split, open_moving_mnist
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
    """Open the sequences of one split.

    Args:
        args: Those of ``args.add_data``; for training, ``seed`` too.
        split: Which one.
        frames: Frames of a sequence, input and future.
        channels: Channels of a frame.
        count: Number of Moving MNIST sequences (default: ``NUM_SEQUENCES``).
        given: Path of a user's own sequences of this split (default: the folder of its name in ``--data``).

    Returns:
        The sequences; None where a user's own data has no such folder. Training falls back on all of it.

    Raises:
        UserError: they cannot be read, or do not fit.
    """
    if args.data == MOVING_MNIST:
        if channels != 1:
            raise UserError(f"Moving MNIST has one channel: pass --channels 1, not {channels}")
        motion = Motion(frames, args.size or Motion.size, args.digits, args.speed)
        seed = args.seed if split == "train" else 0
        return open_moving_mnist(split, args.mnist, motion, count, seed, args.official_test)
    root = Path(args.data)
    places = [Path(given)] if given else [root / name for name in FOLDERS[split] if (root / name).is_dir()]
    places += [root] if split == "train" else []
    return open_own(args, places[0], frames, channels) if places else None


def open_own(
    args: argparse.Namespace, path: str | Path, frames: int, channels: int, from_end: bool = False
) -> ClipSequences:
    """Open a user's own sequences.

    Args:
        args: Those of ``args.add_data``.
        path: See ``open_sequences``.
        frames: Frames of a sequence.
        channels: Channels of a frame.
        from_end: Take only the last frames of each clip.

    Raises:
        UserError: they cannot be read, or do not have ``channels`` channels.
    """
    size = None if args.size is None else (args.size[0], args.size[1])
    cut = Cut(frames, args.frame_step, args.stride, size, from_end)
    return open_sequences(path, cut, channels, args.layout)
