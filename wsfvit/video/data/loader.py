"""Loaders of sequences: batches of (frames, future) that depend neither on the number of workers nor on a resume.

The sequences of a training batch depend only on (seed, epoch, batch), and for equal global batches not on the number of
processes. Frames travel as they are stored, mostly one byte per value, and become float32 on the device.
"""

from collections.abc import Iterator
from typing import Any

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
        dataset: The sequences.
        frames_in: T_in; T_out is the rest of a sequence, and may be 0.
        options: How batches are made.
        batches: Arguments of ``DataLoader`` that say which sequences make up a batch.
    """

    bad_images: tuple[str, ...] = ()  # the trainer counts skipped ones; here a sequence that cannot be read is an error

    def __init__(self, dataset: SequenceDataset, frames_in: int, options: LoaderOptions, **batches: Any) -> None:
        self.dataset, self.frames_in = dataset, frames_in
        self.frames_out = dataset.shape[0] - frames_in
        self._device = options.device
        arguments = loader_arguments(options, collate=_keep) | {"persistent_workers": options.num_workers > 0}
        self._loader: DataLoader[Any] = DataLoader(_ReportingBatches(dataset), **batches, **arguments)
        end_workers_at_exit(self._loader)

    def __len__(self) -> int:
        """Number of batches of a whole pass."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            UserError: a sequence cannot be read.
        """
        for batch in self._loader:
            if isinstance(batch, str):
                raise UserError(batch)
            sequences = to_unit_range(batch.to(self._device, non_blocking=True))
            yield sequences[:, : self.frames_in], sequences[:, self.frames_in :]


class TrainSequenceLoader(SequenceLoader):
    """A ``SequenceLoader`` whose passes are training epochs, each from the batch that ``set_position`` names."""

    def __init__(self, dataset: SequenceDataset, frames_in: int, options: LoaderOptions, sampler: TrainSampler) -> None:
        super().__init__(dataset, frames_in, options, batch_sampler=sampler)
        self.batch_indices = sampler.batch_indices  # dataset indices of one batch of the epoch
        self._sampler = sampler

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Select the epoch of the next passes and their first batch; not during a pass.

        Raises:
            ValueError: an epoch has fewer batches.
        """
        self.dataset.set_epoch(epoch)
        self._sampler.set_position(epoch, first_batch)


def build_train_loader(
    dataset: SequenceDataset, frames_in: int, options: LoaderOptions, seed: int = 42
) -> TrainSequenceLoader:
    """Build the training loader; the last, incomplete batch of an epoch is dropped.

    Args:
        dataset: The sequences.
        frames_in: Number of input frames of each; the others are to be predicted.
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
    return TrainSequenceLoader(dataset, frames_in, options, sampler)


def build_eval_loader(dataset: SequenceDataset, frames_in: int, options: LoaderOptions) -> SequenceLoader:
    """Build the evaluation loader: over all processes every sequence once, in order, without padding.

    Args:
        dataset: The sequences.
        frames_in: Number of input frames of each; all of them where there is no truth to compare with.
        options: As for ``build_train_loader``.

    Raises:
        UserError: sequences shorter than ``frames_in``.
    """
    if not 1 <= frames_in <= dataset.shape[0]:
        raise UserError(f"sequences of {dataset.shape[0]} frames cannot give {frames_in} input frames")
    sampler = EvalSampler(len(dataset), options.world_size, options.rank)
    return SequenceLoader(dataset, frames_in, options, batch_size=options.batch_size, sampler=sampler)


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
    """Identity instead of collation: the dataset makes whole batches."""
    return batch
