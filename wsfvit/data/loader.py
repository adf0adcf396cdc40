"""Loaders of training and evaluation batches, on timm's transforms and prefetching.

Map-style datasets (folders, tar files, hfds/, torch/, digits, synthetic): the pixels of a training batch depend only on
(seed, epoch, batch): not on the number of workers, not on interruptions, and for equal global batches not on the number
of processes. Random erasing, mixup and the like are part of the training step.

Streaming datasets (wds/, hfids/, tfds/) have no random access. Their order and augmentation repeat for equal (seed,
epoch), workers (at least 1) and processes; without workers they depend on previous random numbers. To start inside an
epoch, the batches before are read and dropped. Their readers take the number of processes from torch.distributed when
they are built, not from the options here; that of wds/ skips samples that it cannot decode and logs a warning.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, IterableDataset, default_collate

from wsfvit.data.bad_images import CheckedBatches, OnBadImage, ReportingCollate, TransformedDataset
from wsfvit.data.sampling import EvalSampler, TrainSampler
from wsfvit.data.seeding import SeededDataset, derive_seed
from wsfvit.data.transforms import Augmentation, build_eval_transform, build_train_transform
from wsfvit.data.workers import end_workers_at_exit, outlive_stop_signals
from wsfvit.utils.errors import UserError


@dataclass(frozen=True)
class LoaderOptions:
    """Options of a loader.

    Attributes:
        batch_size: Images per batch of one process.
        num_workers: Dataloader workers; 0 loads in the main process.
        device: Device of prefetched batches.
        use_prefetcher: Collate uint8 and normalise on the device, one batch ahead; otherwise normalise while loading
            and leave the batches on the CPU.
        pin_memory: Page-locked host memory.
        prefetch_factor: Batches that each worker loads ahead (default: 2).
        world_size: Number of processes.
        rank: This process among them.
        on_bad_image: ``raise`` or ``skip``, see ``CheckedBatches``.
        num_classes: Refuse labels that are not integers below it; None for no check.
    """

    batch_size: int
    num_workers: int = 4
    device: torch.device = torch.device("cpu")
    use_prefetcher: bool = True
    pin_memory: bool = False
    prefetch_factor: int | None = None
    world_size: int = 1
    rank: int = 0
    on_bad_image: OnBadImage = "raise"
    num_classes: int | None = None


class EvalLoader:
    """Iterable of batches as ``loader`` collates them; those of ``build_eval_loader`` and ``build_train_loader`` are
    images (B, C, H, W) float32, normalised, and labels (B,) int64.

    Args:
        loader: Collates with ``ReportingCollate``.
        data_config: ``input_size`` (C, H, W), ``mean`` and ``std``.
        options: Options of the loader.

    Attributes:
        dataset: The dataset from ``create_dataset``.
        bad_images: Index to message of the images skipped so far.
    """

    def __init__(self, loader: DataLoader[Any], data_config: Mapping[str, Any], options: LoaderOptions) -> None:
        self._loader = loader
        self.dataset: Any = loader.dataset
        while isinstance(self.dataset, (SeededDataset, TransformedDataset)):
            self.dataset = self.dataset.dataset
        self._batches: Any = CheckedBatches(loader, options.on_bad_image)
        self.bad_images: dict[int, str] = self._batches.bad_images
        if options.use_prefetcher:
            pixels = {"mean": data_config["mean"], "std": data_config["std"], "channels": data_config["input_size"][0]}
            self._batches = PrefetchLoader(self._batches, device=options.device, **pixels)

    def __len__(self) -> int:
        """Number of batches in a whole pass."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


class TrainLoader(EvalLoader):
    """An ``EvalLoader`` whose passes are training epochs, each starting at the position of ``set_position``."""

    def __init__(
        self, loader: DataLoader[Any], data_config: Mapping[str, Any], options: LoaderOptions, seed: int
    ) -> None:
        super().__init__(loader, data_config, options)
        self._seed = seed
        self.set_position(0)

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch of the next passes and their first batch; not to be called during a pass.

        Raises:
            ValueError: An epoch of a map-style dataset has fewer batches.
        """
        dataset: Any = self._loader.dataset
        dataset.set_epoch(epoch)
        sampler = self._loader.batch_sampler
        if isinstance(sampler, TrainSampler):
            sampler.set_position(epoch, first_batch)
            self._batches_to_drop = 0
        else:
            self._batches_to_drop = first_batch
            self._loader.generator.manual_seed(derive_seed(self._seed, epoch))

    def batch_indices(self, batch: int) -> list[int] | None:
        """Dataset indices of one batch of the epoch; None for streaming datasets."""
        sampler = self._loader.batch_sampler
        if not isinstance(sampler, TrainSampler):
            return None
        return [index % sampler.num_samples for index in sampler.batch_indices(batch)]

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self._batches, self._batches_to_drop, None)


def build_train_loader(
    dataset: Any,
    data_config: Mapping[str, Any],
    options: LoaderOptions,
    augmentation: Augmentation | None = None,
    seed: int = 42,
    repeats: int = 1,
) -> TrainLoader:
    """Build a training loader.

    Args:
        dataset: From ``create_dataset``.
        data_config: See ``build_train_transform``.
        options: Options of the loader.
        augmentation: Random transforms (default: timm's).
        seed: Seed of the order and of the augmentation.
        repeats: Repeated augmentation, see ``TrainSampler``.

    Raises:
        UserError: There are fewer images than one global batch, or an augmentation option has a wrong value.
    """
    transform = build_train_transform(data_config, augmentation, options.use_prefetcher)
    if isinstance(dataset, IterableDataset):
        if repeats > 1:
            raise UserError("repeated augmentation needs random access: it is not for wds/, hfids/ and tfds/ datasets")
        loader = _build_stream(dataset, transform, options, drop_last=True)
    else:
        size = len(dataset)
        sampler = TrainSampler(size, options.batch_size, options.world_size, options.rank, seed, repeats)
        if not len(sampler):
            batch = sampler.global_batch
            raise UserError(f"--batch-size {batch} (all processes) is more than the {size} training images")
        seeded = SeededDataset(TransformedDataset(dataset, transform), seed)
        loader = build_map_style(seeded, options, _collate(options), batch_sampler=sampler)
    return TrainLoader(loader, data_config, options, seed)


def build_eval_loader(dataset: Any, data_config: Mapping[str, Any], options: LoaderOptions) -> EvalLoader:
    """Build an evaluation loader: over all processes every image once, in order, without padding.

    Args:
        dataset: From ``create_dataset``. A streaming one splits its shards among workers and processes.
        data_config: See ``build_eval_transform``.
        options: Options of the loader.

    Raises:
        UserError: ``data_config`` holds a value that no transform takes.
    """
    transform = build_eval_transform(data_config, options.use_prefetcher)
    if isinstance(dataset, IterableDataset):
        loader = _build_stream(dataset, transform, options, drop_last=False)
    else:
        sampler = EvalSampler(len(dataset), options.world_size, options.rank)
        images = TransformedDataset(dataset, transform)
        loader = build_map_style(images, options, _collate(options), batch_size=options.batch_size, sampler=sampler)
    return EvalLoader(loader, data_config, options)


def build_map_style(
    dataset: Any, options: LoaderOptions, collate: Callable[[list[Any]], Any], **batches: Any
) -> DataLoader[Any]:
    """A ``DataLoader`` for ``EvalLoader`` and ``TrainLoader``.

    Args:
        dataset: Map-style; an item that cannot be read is a ``BadImage``.
        options: Options of the loader; ``batch_size``, ``world_size`` and ``rank`` are left to ``batches``.
        collate: Collates a list of items.
        batches: ``batch_sampler``, or ``batch_size`` and ``sampler``.
    """
    arguments = loader_arguments(options, ReportingCollate(collate, options.num_classes))
    return end_workers_at_exit(DataLoader(dataset, **batches, **arguments, persistent_workers=options.num_workers > 0))


def _build_stream(dataset: Any, transform: Any, options: LoaderOptions, drop_last: bool) -> DataLoader[Any]:
    """Loader of a streaming dataset; each pass starts new workers, so that set_position can seed them."""
    dataset.transform = transform
    dataset.set_loader_cfg(num_workers=options.num_workers)
    if not len(dataset):
        raise UserError("this streaming dataset does not know its size: pass --train-num-samples or --val-num-samples")
    arguments = loader_arguments(options, ReportingCollate(_collate(options), options.num_classes))
    return DataLoader(dataset, batch_size=options.batch_size, drop_last=drop_last, **arguments)


def _collate(options: LoaderOptions) -> Callable[[list[Any]], Any]:
    return fast_collate if options.use_prefetcher else default_collate


def loader_arguments(options: LoaderOptions, collate: Callable[[Any], Any]) -> dict[str, Any]:
    """Arguments of a ``DataLoader`` that do not depend on the dataset."""
    # torch warns twice per loader if there are more workers than cores; the time spent waiting for data is shown.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    return {
        "num_workers": options.num_workers,
        "collate_fn": collate,
        "pin_memory": options.pin_memory,
        "worker_init_fn": outlive_stop_signals,
        "prefetch_factor": options.prefetch_factor if options.num_workers else None,
        # A separate generator: a pass does not draw from the global one.
        "generator": torch.Generator(),
    }
