"""Generated pictures, so that a training or a measurement runs without any files."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from wsfvit.data.digits import TRAIN_SPLITS
from wsfvit.data.seeding import derive_seed

SIDE = 256
# A picture is a coarse grid of colours, drawn large: half of it belongs to the class, half to the picture.
GRID = 8


class Synthetic(Dataset[tuple[Any, int]]):
    """Map-style dataset of (image, label): 256x256 PIL images that depend on the split and the index alone.

    Labels go round, ``index % num_classes``, and each class has its own coarse pattern, so a network can learn them.

    Args:
        split: A training split, by the names of the digits; every other name gives other pictures of the same classes.
        num_samples: Number of pictures.
        num_classes: Number of classes.
        mode: PIL mode of the pictures.
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
        picture = Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert(self.mode)
        return (picture if self.transform is None else self.transform(picture)), label


def _draw_grid(*key: int) -> np.ndarray:
    """(GRID, GRID, 3) uint8."""
    return np.random.default_rng(derive_seed(*key)).integers(0, 256, (GRID, GRID, 3), dtype=np.uint8)
