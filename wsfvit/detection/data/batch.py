"""Samples and batches of detection: images of different sizes in one padded tensor, with their targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Size = tuple[int, int]
Target = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One transformed image.

    Attributes:
        image: float32 (3, h, w), normalised.
        target: ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels of ``image``, ``labels`` int64 (N,) counted from 0,
            ``masks`` uint8 (N, h, w), ``image_id``; None in evaluation.
        original_size: (h, w) of the file.
        image_id: Id in the annotation file.
    """

    image: Tensor
    target: Target | None
    original_size: Size
    image_id: int


@dataclass(frozen=True)
class DetectionBatch:
    """B images in one tensor.

    Attributes:
        images: float32 (B, 3, H, W), normalised, padded with zeros to the right and below.
        sizes: (h, w) of each image within ``images``.
        targets: ``Sample.target`` of each image; empty in evaluation.
        original_sizes: (h, w) of each file.
        image_ids: Ids in the annotation file.
    """

    images: Tensor
    sizes: list[Size]
    targets: list[Target]
    original_sizes: list[Size]
    image_ids: list[int]

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "DetectionBatch":
        """The same batch with all tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "DetectionBatch":
        """The same batch in page-locked memory; called by ``DataLoader``."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> "DetectionBatch":
        targets = [
            {key: move(value) if isinstance(value, Tensor) else value for key, value in target.items()}
            for target in self.targets
        ]
        return replace(self, images=move(self.images), targets=targets)


class PaddingCollate:
    """Pads samples to a ``DetectionBatch`` whose sides are the smallest multiples of ``multiple`` that hold all images.

    A class, not a closure, so that spawned dataloader workers can unpickle it.
    """

    def __init__(self, multiple: int = 1) -> None:
        self.multiple = multiple

    def __call__(self, samples: Sequence[Sample]) -> DetectionBatch:
        sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
        height, width = (-(-max(sides) // self.multiple) * self.multiple for sides in zip(*sizes, strict=True))
        images = torch.zeros(len(samples), 3, height, width)
        for canvas, sample, (h, w) in zip(images, samples, sizes, strict=True):
            canvas[:, :h, :w] = sample.image
        return DetectionBatch(
            images=images,
            sizes=sizes,
            targets=[sample.target for sample in samples if sample.target is not None],
            original_sizes=[sample.original_size for sample in samples],
            image_ids=[sample.image_id for sample in samples],
        )
