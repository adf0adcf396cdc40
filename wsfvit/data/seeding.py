"""Seeds derived from a key of integers, so that random numbers do not depend on the process or worker."""

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info


def derive_seed(*key: int) -> int:
    """A 64-bit seed from a key of 64-bit integers (order and number matter, negative ones are allowed)."""
    return int.from_bytes(_hash(key, 8), "little")


def _hash(key: tuple[int, ...], size: int) -> bytes:
    # NumPy's SeedSequence takes ten times as long and does not distinguish (1,) from (1, 0).
    return hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=size).digest()


def _seed_cpu(key: tuple[int, ...]) -> int:
    """Seed Python's, NumPy's and PyTorch's CPU generators; return PyTorch's seed."""
    python_seed, torch_seed, numpy_seed = struct.unpack("<QQI", _hash(key, 20))
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    # Not torch.manual_seed, which stores a stack trace on each call before CUDA is initialised.
    torch.default_generator.manual_seed(torch_seed)
    return int(torch_seed)


def seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators from a key such as (seed, epoch, update).

    The CUDA generators are included if CUDA is initialised. Equal keys give equal numbers on every machine.
    """
    seed = _seed_cpu(key)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def _cpu_generators_kept() -> Iterator[None]:
    """Restore the states of the three CPU generators at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededDataset(Dataset[Any]):
    """A map-style dataset whose random transforms depend only on (seed, epoch, index).

    Neither the number of workers nor the images read before matter, so a resumed run sees the same pixels. Without
    workers the global generators are left unchanged. Items of ``dataset`` may draw from Python's, NumPy's and PyTorch's
    CPU generators.

    An index of ``repeat * len(dataset) + i`` gives item ``i`` with the random numbers of its repeat number ``repeat``.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        # Shared memory: persistent workers see what the main process writes.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, also in the workers; not to be called during a pass."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The items of one batch; ``DataLoader`` requests them together, so states are saved once per batch."""
        with _cpu_generators_kept() if get_worker_info() is None else nullcontext():
            return [self._get_seeded(index) for index in indices]

    def _get_seeded(self, index: int) -> Any:
        _seed_cpu((self.seed, int(self._epoch), index))
        return self.dataset[index % len(self.dataset)]
