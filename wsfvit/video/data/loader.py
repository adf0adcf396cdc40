"""Loaders of sequences: batches of (frames, future), the same for any number of workers and any cut of a run.

The sequences of a training batch depend on (seed, epoch, batch) alone, and for equal global batches not on the number
of processes. Frames travel as they are stored, mostly one byte a value, and become float32 on the device.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wsfvit.data import EvalSampler, LoaderOptions, TrainSampler
from wsfvit.data.loader import loader_arguments
from wsfvit.data.workers import end_workers_at_exit
from wsfvit.utils.errors import UserError
from wsfvit.video.data.sequences import SequenceDataset, to_unit_range

Batch = tuple[Tensor, Tensor]


class SequenceLoader:
    """Batches of float32 frames (B, T_in, C, H, W) and future (B, T_out, C, H, W) in [0, 1], on the options' device.

    Args:
        loader: Yields what ``_ReportingBatches`` makes.
        dataset: The sequences.
        frames_in: T_in; T_out is the rest of a sequence, and may be 0.
        device: Where the batches go.
    """

    bad_images: tuple[str, ...] = ()  # what the engine counts: none, as a sequence that cannot be read ends the run

    def __init__(self, loader: DataLoader[Any], dataset: SequenceDataset, frames_in: int, device: torch.device) -> None:
        self.dataset, self.frames_in = dataset, frames_in
        self._loader, self._device = loader, device

    @property
    def frames_out(self) -> int:
        """T_out."""
        return self.dataset.shape[0] - self.frames_in

    def __len__(self) -> int:
        """Number of batches of a whole pass."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches.

        Raises:
            UserError: a sequence cannot be read.
        """
        for batch in self._loader:
            if isinstance(batch, str):
                raise UserError(batch)
            sequences = to_unit_range(batch.to(self._device, non_blocking=True))
            yield sequences[:, : self.frames_in], sequences[:, self.frames_in :]


class TrainSequenceLoader(SequenceLoader):
    """A ``SequenceLoader`` whose passes are the epochs of a training; each starts where ``set_position`` says."""

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Chooses the epoch of the next passes and the batch that they start with; not while one is under way.

        Raises:
            ValueError: an epoch has fewer batches.
        """
        self.dataset.set_epoch(epoch)
        self._sampler.set_position(epoch, first_batch)

    def batch_indices(self, batch: int) -> list[int]:
        """Dataset indices of the sequences of one batch of the epoch."""
        return self._sampler.batch_indices(batch)

    @property
    def _sampler(self) -> TrainSampler:
        sampler: Any = self._loader.batch_sampler
        assert isinstance(sampler, TrainSampler)
        return sampler


def build_train_loader(
    dataset: SequenceDataset, frames_in: int, options: LoaderOptions, seed: int = 42
) -> TrainSequenceLoader:
    """Builds the loader of a training; the last, incomplete batch of an epoch is left out.

    Args:
        dataset: The sequences.
        frames_in: How many frames of each are input; the others are to be predicted.
        options: How batches are made. ``use_prefetcher`` and ``on_bad_image`` have no effect: a sequence that cannot be
            read always ends the run.
        seed: Seed of the order.

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
    loader = _build(dataset, options, batch_sampler=sampler)
    return TrainSequenceLoader(loader, dataset, frames_in, options.device)


def build_eval_loader(dataset: SequenceDataset, frames_in: int, options: LoaderOptions) -> SequenceLoader:
    """Builds the loader of an evaluation: over all processes every sequence once, in order, none padded.

    Args:
        dataset: The sequences.
        frames_in: How many frames of each are input; all of them where there is no truth to compare with.
        options: As for ``build_train_loader``.

    Raises:
        UserError: sequences shorter than ``frames_in``.
    """
    if not 1 <= frames_in <= dataset.shape[0]:
        raise UserError(f"sequences of {dataset.shape[0]} frames cannot give {frames_in} input frames")
    sampler = EvalSampler(len(dataset), options.world_size, options.rank)
    loader = _build(dataset, options, batch_size=options.batch_size, sampler=sampler)
    return SequenceLoader(loader, dataset, frames_in, options.device)


def _build(dataset: SequenceDataset, options: LoaderOptions, **batches: Any) -> DataLoader[Any]:
    arguments = loader_arguments(options, collate=_keep)
    loader = DataLoader(_ReportingBatches(dataset), **batches, **arguments, persistent_workers=options.num_workers > 0)
    return end_workers_at_exit(loader)


class _ReportingBatches(Dataset[Any]):
    """Whole batches of a dataset, or the text of the error: raised in a worker it would come with a traceback."""

    def __init__(self, dataset: SequenceDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> Tensor | str:
        try:
            return self.dataset.__getitems__(indices)
        except UserError as err:
            return str(err)


def _keep(batch: Tensor | str) -> Tensor | str:
    """Collates nothing: the dataset makes whole batches."""
    return batch
