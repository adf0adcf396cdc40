"""Sequences from the arguments of a command, and loaders whose batches depend neither on workers nor on a resume.

The sequences of a training batch depend only on (seed, epoch, batch), and for equal global batches not on the number of
processes. Frames travel as they are stored, mostly one byte per value, and become float32 on the device.
"""

import argparse
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from wsfvit.data import EvalSampler, LoaderOptions, TrainSampler
from wsfvit.data.loader import loader_arguments
from wsfvit.data.workers import end_workers_at_exit
from wsfvit.utils.errors import UserError
from wsfvit.video.data.moving_mnist import Motion, Split, open_moving_mnist
from wsfvit.video.data.sequences import ClipSequences, Cut, SequenceDataset, open_sequences, to_unit_range

MOVING_MNIST = "moving-mnist"
# Split by the name of its folder.
SPLIT_OF: dict[str, Split] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
Batch = tuple[Tensor, Tensor]


class SequenceLoader:
    """Batches of float32 frames (B, T_in, C, H, W) and future (B, T_out, C, H, W) in [0, 1], on the options' device.

    Args:
        dataset: The sequences.
        frames_in: T_in; T_out is the rest of a sequence, and may be 0.
        options: How batches are made.
        sampler: Which sequences; passes of a ``TrainSampler`` are training epochs, each from the batch that
            ``set_position`` names.
    """

    bad_images: tuple[str, ...] = ()  # the trainer counts skipped ones; here a sequence that cannot be read is an error

    def __init__(
        self, dataset: SequenceDataset, frames_in: int, options: LoaderOptions, sampler: TrainSampler | EvalSampler
    ) -> None:
        self.dataset, self.frames_in, self._sampler = dataset, frames_in, sampler
        self.frames_out = dataset.shape[0] - frames_in
        self._device = options.device
        read: Any = range(len(dataset))  # workers collate indices into a batch
        arguments = loader_arguments(options, partial(_read_batch, dataset))
        arguments |= {"persistent_workers": options.num_workers > 0}
        if isinstance(sampler, TrainSampler):
            self.batch_indices = sampler.batch_indices  # dataset indices of one batch of the epoch
            arguments |= {"batch_sampler": sampler}
        else:
            arguments |= {"batch_size": options.batch_size, "sampler": sampler}
        self._loader = end_workers_at_exit(DataLoader(read, **arguments))

    def __len__(self) -> int:
        """Number of batches of a whole pass."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; a sequence that cannot be read is a ``UserError``."""
        for batch in self._loader:
            if isinstance(batch, str):
                raise UserError(batch)
            sequences = to_unit_range(batch.to(self._device, non_blocking=True))
            yield sequences[:, : self.frames_in], sequences[:, self.frames_in :]

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Select the training epoch of the next passes and their first batch; see ``TrainSampler``."""
        assert isinstance(self._sampler, TrainSampler)
        self.dataset.set_epoch(epoch)
        self._sampler.set_position(epoch, first_batch)


def build_train_loader(
    dataset: SequenceDataset, frames_in: int, options: LoaderOptions, seed: int = 42
) -> SequenceLoader:
    """Build the training loader: in an order drawn from ``seed``, without the last, incomplete batch of an epoch.

    ``use_prefetcher`` and ``on_bad_image`` have no effect: a sequence that cannot be read always ends the run.

    Raises:
        UserError: fewer sequences than one global batch, or no frame left to predict.
    """
    if not 1 <= frames_in < dataset.shape[0]:
        raise UserError(f"of sequences of {dataset.shape[0]} frames, 1 to {dataset.shape[0] - 1} can be input")
    sampler = TrainSampler(len(dataset), options.batch_size, options.world_size, options.rank, seed)
    if not len(sampler):
        raise UserError(
            f"--batch-size {sampler.global_batch} (all processes) is more than the {len(dataset)} training sequences"
        )
    return SequenceLoader(dataset, frames_in, options, sampler)


def build_eval_loader(dataset: SequenceDataset, frames_in: int, options: LoaderOptions) -> SequenceLoader:
    """Build the evaluation loader: over all processes every sequence once, in order, without padding.

    Sequences shorter than ``frames_in`` are a ``UserError``.
    """
    if not 1 <= frames_in <= dataset.shape[0]:
        raise UserError(f"sequences of {dataset.shape[0]} frames cannot give {frames_in} input frames")
    sampler = EvalSampler(len(dataset), options.world_size, options.rank)
    return SequenceLoader(dataset, frames_in, options, sampler)


def _read_batch(dataset: SequenceDataset, indices: list[int]) -> Tensor | str:
    """A whole batch as stored, or the text of the error: raised in a worker it would come with a traceback."""
    try:
        return dataset.__getitems__(indices)
    except UserError as err:
        return str(err)


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
        frames, channels: Frames of a sequence, input and future, and channels of a frame.
        count: Number of Moving MNIST sequences (default: ``NUM_SEQUENCES``).
        given: Path of a user's own sequences of this split (default: the folder of its name in ``--data``).

    Returns:
        The sequences; None where a user's own data has no such folder. Training falls back on all of it if it has no
        folder of another split either.

    Raises:
        UserError: they cannot be read, or do not fit; for training, there are only folders of other splits.
    """
    if args.data == MOVING_MNIST:
        if given or args.layout or args.stride:
            raise UserError("sequences, --layout and --stride of your own go with --data PATH, not with Moving MNIST")
        if channels != 1:
            raise UserError(f"Moving MNIST has one channel: pass --channels 1, not {channels}")
        motion = Motion(frames, args.size or Motion.size, args.digits, args.speed)
        seed = args.seed if split == "train" else 0
        return open_moving_mnist(split, args.mnist, motion, count, seed, args.official_test)
    folders = {} if given else find_splits(args.data)
    if folders and split == "train" and split not in folders:
        found = ", ".join(path.name for path in folders.values())
        raise UserError(f"'{args.data}' has no folder train, only {found}: add it, or give a folder without splits")
    whole = args.data if split == "train" else None
    place = given or folders.get(split, whole)
    return open_own(args, place, frames, channels) if place else None


def find_splits(root: str | Path) -> dict[Split, Path]:
    """Folders of the splits directly below ``root``, by the names in ``SPLIT_OF`` in any case.

    Two folders of one split are a ``UserError``.
    """
    found: dict[Split, Path] = {}
    for path in sorted(Path(root).iterdir()) if Path(root).is_dir() else ():
        split = SPLIT_OF.get(path.name.lower())
        if split is None or not path.is_dir():
            continue
        if split in found:
            raise UserError(f"'{root}' has two folders of one split, {found[split].name} and {path.name}: keep one")
        found[split] = path
    return found


def refuse_shared(sets: Mapping[str, SequenceDataset | None]) -> None:
    """Raise a ``UserError`` where two of the named splits read the same file or folder of a user's own data."""
    for (name, one), (other, two) in combinations([(n, data) for n, data in sets.items() if data is not None], 2):
        if shared := one.sources & two.sources:
            raise UserError(
                f"{len(shared)} of {len(two.sources)} clips of {other} are part of {name} too, e.g. '{min(shared)}': "
                "name sequences that no other split contains"
            )


def open_own(
    args: argparse.Namespace, path: str | Path, frames: int, channels: int, from_end: bool = False
) -> ClipSequences:
    """Open a user's own sequences, cut as the arguments of ``args.add_data`` say; see ``open_sequences``.

    Raises:
        UserError: they cannot be read, or do not have ``channels`` channels.
    """
    size = None if args.size is None else (args.size[0], args.size[1])
    cut = Cut(frames, args.frame_step, args.stride, size, from_end)
    return open_sequences(path, cut, channels, args.layout)
