"""Dataloaders of detection: batches of similar aspect ratios in training, every image once in evaluation."""

from dataclasses import replace

import numpy as np

from wsfvit.data.loader import EvalLoader, LoaderOptions, TrainLoader, build_map_style
from wsfvit.data.sampling import EvalSampler, TrainSampler
from wsfvit.data.seeding import SeededDataset, derive_seed
from wsfvit.detection.data.dataset import DetectionDataset, PaddingCollate
from wsfvit.utils.errors import UserError

WINDOW = 16  # images of the published batch


class AspectRatioSampler(TrainSampler):
    """A ``TrainSampler`` whose batches hold images of similar aspect ratio, which need little padding.

    The permutation of the epoch, drawn from (seed, epoch), is cut into windows of whole global batches, at least
    ``WINDOW`` images. Within a window images are sorted by aspect ratio and cut into global batches, which are then
    shuffled; each rank takes consecutive images of a global batch. So

    - a batch depends only on (seed, epoch, batch),
    - the images of a global batch do not depend on the number of processes, for equal global batch sizes,
    - an update on ``WINDOW`` images, or a multiple, has the same images however they are divided into processes,
      batches and accumulated steps, if the global batch size divides ``WINDOW``.

    The last, incomplete global batch of an epoch is left out.

    Args:
        aspect_ratios: Width by height of each image.
        batch_size, world_size, rank, seed: See ``TrainSampler``.
    """

    def __init__(
        self, aspect_ratios: np.ndarray, batch_size: int, world_size: int = 1, rank: int = 0, seed: int = 42
    ) -> None:
        super().__init__(len(aspect_ratios), batch_size, world_size, rank, seed)
        self.aspect_ratios, self.batch_size = aspect_ratios, batch_size
        self.window_batches = -(-WINDOW // self.global_batch)

    def _indices(self, order: np.ndarray, batch: int) -> list[int]:
        window, place = divmod(batch, self.window_batches)
        first = window * self.window_batches
        batches = min(self.window_batches, len(self) - first)
        images = order[first * self.global_batch : (first + batches) * self.global_batch]
        images = images[np.argsort(self.aspect_ratios[images], kind="stable")]
        shuffled = np.random.default_rng(derive_seed(self.seed, self.epoch, window)).permutation(batches)
        start = shuffled[place] * self.global_batch + self.rank * self.batch_size
        indices: list[int] = images[start : start + self.batch_size].tolist()
        return indices


def build_train_loader(
    dataset: DetectionDataset, options: LoaderOptions, multiple: int = 1, seed: int = 42
) -> TrainLoader:
    """Builds the training loader: batches are ``DetectionBatch`` with targets, on the CPU.

    Args:
        dataset: With targets.
        options: How batches are made; ``device`` and ``use_prefetcher`` are not used.
        multiple: The sides of the batches are multiples of it, in pixels.
        seed: Of order and augmentation.

    Raises:
        UserError: fewer images than one global batch.
    """
    total = options.batch_size * options.world_size
    if len(dataset) < total:
        raise UserError(f"--batch-size {total} (all processes) is more than the {len(dataset)} training images")
    ratios = dataset.aspect_ratios
    sampler = AspectRatioSampler(ratios, options.batch_size, options.world_size, options.rank, seed)
    seeded = SeededDataset(dataset, seed)
    loader = build_map_style(seeded, options, PaddingCollate(multiple), batch_sampler=sampler)
    # timm's prefetcher normalises batches of classification; here the dataset normalises.
    return TrainLoader(loader, {}, replace(options, use_prefetcher=False), seed)


def build_eval_loader(dataset: DetectionDataset, options: LoaderOptions, multiple: int = 1) -> EvalLoader:
    """Builds the evaluation loader: every image once over all processes, in ``DetectionBatch`` without targets.

    Arguments are those of ``build_train_loader``; ``dataset`` has no targets.
    """
    sampler = EvalSampler(len(dataset), options.world_size, options.rank)
    collate = PaddingCollate(multiple)
    loader = build_map_style(dataset, options, collate, batch_size=options.batch_size, sampler=sampler)
    return EvalLoader(loader, {}, replace(options, use_prefetcher=False))
