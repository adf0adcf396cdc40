"""Published augmentation of detection: images, boxes and masks flipped, resized and cropped together.

With equal chance an image is either resized to one of several short sides, or resized, cropped and resized again, as in
DETR's recipe (Carion et al., 2020), also used by Sparse R-CNN and Swin Transformer. Sides after resizing are
``int(side * scale + 0.5)``, images are interpolated bilinearly without antialiasing, and masks take the nearest pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

Size = tuple[int, int]
PUBLISHED_LONG_SIDE = 1120


@dataclass(frozen=True)
class TrainSizes:
    """Sizes that the augmentation draws from, in pixels; the defaults are the published ones."""

    short_sides: tuple[int, ...] = (448, 672, 896)  # short side of the result, one drawn per image
    long_side: int = PUBLISHED_LONG_SIDE  # the long side is at most this long
    crop_short_sides: tuple[int, ...] = (400, 500, 600)  # short side before the crop
    # Height and width of the crop are drawn from this range, both ends included, and are at most those of the image.
    crop_range: tuple[int, int] = (448, 600)

    def __post_init__(self) -> None:
        lowest, highest = self.crop_range
        sides = (*self.short_sides, *self.crop_short_sides, self.long_side, lowest)
        if not self.short_sides or not self.crop_short_sides or min(sides) < 1 or highest < lowest:
            raise ValueError(f"{self}: sizes must be positive, lists not empty and crop_range (lowest, highest)")

    def scaled_to(self, long_side: int) -> "TrainSizes":
        """The same augmentation at another image size: every size times the ratio of the long sides."""

        def scale(sides: Sequence[int]) -> tuple[int, ...]:
            return tuple(max(1, round(side * long_side / self.long_side)) for side in sides)

        low, high = scale(self.crop_range)
        return TrainSizes(scale(self.short_sides), long_side, scale(self.crop_short_sides), (low, high))


@dataclass(frozen=True)
class View:
    """State of an image during the transforms: pixels, boxes, and where in the file they come from."""

    image: Tensor  # uint8 (3, h, w)
    boxes: Tensor  # float32 (N, 4), x1, y1, x2, y2 in pixels of ``image``
    kept: Tensor  # int64 (N,), indices of the remaining objects among those at the start
    rows: np.ndarray  # int64 array (h,), source row of each row by nearest neighbour
    columns: np.ndarray  # int64 array (w,), columns likewise

    @property
    def size(self) -> Size:
        """(h, w)."""
        return self.image.shape[1], self.image.shape[2]


def start_view(image: Tensor, boxes: Tensor) -> View:
    """View of a whole image, uint8 (3, h, w), with boxes, float32 (N, 4), clipped to it."""
    _, h, w = image.shape
    return View(image, clip_boxes_to_image(boxes, (h, w)), torch.arange(len(boxes)), np.arange(h), np.arange(w))


def flip(view: View) -> View:
    """Mirrors left and right: x becomes w - x."""
    w = view.size[1]
    x1, y1, x2, y2 = view.boxes.unbind(1)
    boxes = torch.stack((w - x2, y1, w - x1, y2), 1)
    return replace(view, image=view.image.flip(2), boxes=boxes, columns=view.columns[::-1])


def fitted_size(size: Size, short_side: int, long_side: int) -> Size:
    """Largest (h, w) of the same aspect ratio within both limits; 480x640 becomes 840x1120 for 896 and 1120."""
    scale = min(short_side / min(size), long_side / max(size))
    h, w = (max(1, int(side * scale + 0.5)) for side in size)
    return h, w


def resize(view: View, size: Size) -> View:
    """Resizes to (h, w); each side has its own scale, because sides are integers."""
    old, (h, w) = view.size, size
    image = view.image
    if old != size:
        # The kernel is fastest on channels-last memory.
        pixels = image[None].contiguous(memory_format=torch.channels_last)
        image = F.interpolate(pixels, size, mode="bilinear", align_corners=False)[0]
    scale = view.boxes.new_tensor([w / old[1], h / old[0]]).repeat(2)
    return replace(
        view,
        image=image,
        boxes=clip_boxes_to_image(view.boxes * scale, size),
        rows=view.rows[np.arange(h) * old[0] // h],
        columns=view.columns[np.arange(w) * old[1] // w],
    )


def crop(view: View, top: int, left: int, size: Size) -> View:
    """Crops to (h, w) pixels; boxes are clipped, and objects whose boxes lie outside are dropped."""
    h, w = size
    boxes = clip_boxes_to_image(view.boxes - view.boxes.new_tensor([left, top, left, top]), size)
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return View(
        image=view.image[:, top : top + h, left : left + w],
        boxes=boxes[inside],
        kept=view.kept[inside],
        rows=view.rows[top : top + h],
        columns=view.columns[left : left + w],
    )


def _draw(low: int, high: int) -> int:
    """A random integer from low to high, both included, from torch's global generator."""
    return int(torch.randint(low, high + 1, ()))


@dataclass(frozen=True)
class TrainTransform:
    """Published augmentation; draws from torch's global generator."""

    sizes: TrainSizes = TrainSizes()  # sizes to draw from
    flip_chance: float = 0.5  # probability of a horizontal flip
    crop_chance: float = 0.5  # probability of a crop

    def __call__(self, view: View) -> View:
        if float(torch.rand(())) < self.flip_chance:
            view = flip(view)
        if float(torch.rand(())) < self.crop_chance:
            view = self._random_crop(self._random_resize(view, self.sizes.crop_short_sides))
        return self._random_resize(view, self.sizes.short_sides)

    def _random_resize(self, view: View, short_sides: Sequence[int]) -> View:
        short_side = short_sides[_draw(0, len(short_sides) - 1)]
        return resize(view, fitted_size(view.size, short_side, self.sizes.long_side))

    def _random_crop(self, view: View) -> View:
        low, high = self.sizes.crop_range
        h, w = (_draw(min(side, low), min(side, high)) for side in view.size)
        top, left = _draw(0, view.size[0] - h), _draw(0, view.size[1] - w)
        return crop(view, top, left, (h, w))


@dataclass(frozen=True)
class EvalTransform:
    """Resizes as large as both limits, in pixels, allow."""

    short_side: int = 896
    long_side: int = PUBLISHED_LONG_SIDE

    def __call__(self, view: View) -> View:
        return resize(view, fitted_size(view.size, self.short_side, self.long_side))


@dataclass(frozen=True)
class Normalize:
    """Converts uint8 (3, h, w) to float32, minus the mean, divided by the standard deviation of each channel."""

    # For values from 0 to 1; the defaults are the published 123.675, 116.28, 103.53 of 255.
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD  # likewise; 58.395, 57.12, 57.375 of 255

    @classmethod
    def of_model(cls, name: str) -> "Normalize":
        """Mean and standard deviation of a registered model."""
        cfg = timm.get_pretrained_cfg(name)
        return cls(tuple(cfg.mean), tuple(cfg.std))

    def __call__(self, image: Tensor) -> Tensor:
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return image.float().sub_(mean).div_(std)
