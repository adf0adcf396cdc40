"""Samplers: training batches that depend only on (seed, epoch, batch), and every image once for evaluation."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from wsfvit.data.seeding import derive_seed

# timm's (and DeiT's) epoch of repeated augmentation is a multiple of this.
REPEAT_ROUND = 256


class TrainSampler(Sampler[list[int]]):
    """Batches of indices of one process: each global batch is cut from one permutation, drawn from (seed, epoch).

    A global batch holds ``batch_size * world_size`` images, and rank r takes every ``world_size``-th of them from the
    r-th on, so its images do not depend on the number of processes for an equal global batch size. The last, incomplete
    global batch of an epoch is dropped.

    Args:
        num_samples: Number of images.
        batch_size: Images per batch of one process.
        world_size: Number of processes.
        rank: This process among them.
        seed: Seed of the permutations.
        repeats: Repeated augmentation (Hoffer et al., "Augment your batch", 2020; DeiT): each image stands
            ``repeats`` times in a row in the pool that batches are cut from, and an epoch ends after as many images as
            timm's ``RepeatAugSampler`` takes, so that it does not become longer. Number ``k`` of image ``i`` has the
            index ``k * num_samples + i``, which ``SeededDataset`` understands.
    """

    def __init__(
        self, num_samples: int, batch_size: int, world_size: int = 1, rank: int = 0, seed: int = 42, repeats: int = 1
    ) -> None:
        if not 0 <= rank < world_size or min(num_samples, batch_size, repeats) < 1:
            raise ValueError(
                f"num_samples={num_samples}, batch_size={batch_size}, world_size={world_size}, rank={rank}, "
                f"repeats={repeats}: counts must be positive and 0 <= rank < world_size"
            )
        self.num_samples, self.repeats, self.seed = num_samples, repeats, seed
        self.world_size, self.rank = world_size, rank
        self.global_batch = batch_size * world_size
        self.epoch = self.first_batch = 0

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        images = self.num_samples
        if self.repeats > 1 and images >= REPEAT_ROUND:
            images -= images % REPEAT_ROUND
        return images // self.global_batch

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch and the first batch of the next pass.

        Raises:
            ValueError: An epoch has fewer batches.
        """
        if not 0 <= first_batch <= len(self):
            raise ValueError(f"batch {first_batch} of an epoch of {len(self)} batches")
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for batch in range(self.first_batch, len(self)):
            yield self._indices(order, batch)

    def batch_indices(self, batch: int) -> list[int]:
        """The indices of one batch of the epoch."""
        return self._indices(self._order(), batch)

    def _order(self) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, self.epoch)).permutation(self.num_samples)

    def _indices(self, order: np.ndarray, batch: int) -> list[int]:
        places = np.arange(batch * self.global_batch + self.rank, (batch + 1) * self.global_batch, self.world_size)
        image, repeat = order[places // self.repeats], places % self.repeats
        return (repeat * self.num_samples + image).tolist()


class EvalSampler(Sampler[int]):
    """Indices of one process: every ``world_size``-th image from ``rank`` on, without repetition or padding.

    Args:
        num_samples: Number of images; ranks beyond it get none.
        world_size: Number of processes.
        rank: This process among them.
    """

    def __init__(self, num_samples: int, world_size: int = 1, rank: int = 0) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes")
        self.indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
