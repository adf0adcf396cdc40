"""Generated images, to train or measure without any files."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from wsfvit.data.digits import TRAIN_SPLITS
from wsfvit.data.seeding import derive_seed

SIDE = 256
# An image is an upsampled coarse grid of colours: the mean of a grid of its class and one of its own.
GRID = 8


class Synthetic(Dataset[tuple[Any, int]]):
    """Map-style dataset of (image, label): 256x256 PIL images that depend only on the split and the index.

    Labels are ``index % num_classes``, and each class has its own coarse pattern, so that a network can learn them.

    Args:
        split: A name from ``digits.TRAIN_SPLITS``; every other name gives other images of the same classes.
        num_samples: Number of images.
        num_classes: Number of classes.
        mode: PIL mode of the images.
    """

    def __init__(
        self, split: str = "train", num_samples: int = 1024, num_classes: int = 1000, mode: str = "RGB"
    ) -> None:
        self.num_samples, self.num_classes, self.mode = num_samples, num_classes, mode
        self.split = int(split not in TRAIN_SPLITS)
        self.class_to_idx = {str(label): label for label in range(num_classes)}
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not 0 <= index < self.num_samples:
            raise IndexError(index)
        label = index % self.num_classes
        grid = (_draw_grid(label) // 2 + _draw_grid(self.split, index) // 2).astype(np.uint8)
        image = Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert(self.mode)
        return (image if self.transform is None else self.transform(image)), label


def _draw_grid(*key: int) -> np.ndarray:
    """(GRID, GRID, 3) uint8."""
    return np.random.default_rng(derive_seed(*key)).integers(0, 256, (GRID, GRID, 3), dtype=np.uint8)
