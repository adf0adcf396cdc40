"""Dataset of the images of an annotation file, transformed together with their objects; samples and padded batches."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from wsfvit.data.bad_images import BadImage
from wsfvit.data.decoders import convert_image
from wsfvit.data.images import BadImageError, describe
from wsfvit.detection.data.coco import CocoData, CocoImage
from wsfvit.detection.data.coco_masks import sample_masks
from wsfvit.detection.data.transforms import Normalize, Size, View, start_view

Target = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One transformed image."""

    image: Tensor  # float32 (3, h, w), normalised
    # ``boxes`` float32 (N, 4) as x1, y1, x2, y2 in pixels of ``image``, ``labels`` int64 (N,) counted from 0, ``masks``
    # uint8 (N, h, w), ``image_id``; None in evaluation.
    target: Target | None
    original_size: Size  # (h, w) of the file
    image_id: int  # id in the annotation file


@dataclass(frozen=True)
class DetectionBatch:
    """B images in one tensor."""

    images: Tensor  # float32 (B, 3, H, W), normalised, padded with zeros to the right and below
    sizes: list[Size]  # (h, w) of each image within ``images``
    targets: list[Target]  # ``Sample.target`` of each image; empty in evaluation
    original_sizes: list[Size]  # (h, w) of each file
    image_ids: list[int]  # ids in the annotation file

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "DetectionBatch":
        """The same batch with all tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "DetectionBatch":
        """The same batch in page-locked memory; called by ``DataLoader``."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> "DetectionBatch":
        return replace(self, images=move(self.images), targets=tree_map_only(Tensor, move, self.targets))


class DetectionDataset(Dataset[Any]):
    """Items are ``Sample``, or a ``BadImage`` for an image that cannot be read.

    Args:
        data: Images and annotations; for training from ``CocoData.for_training``.
        transform, normalize: Flips, resizes and crops; mean and standard deviation of the backbone.
        with_targets: Whether items have boxes, labels and masks.
    """

    def __init__(
        self, data: CocoData, transform: Callable[[View], View], with_targets: bool, normalize: Normalize | None = None
    ) -> None:
        self.transform, self.with_targets, self.normalize = transform, with_targets, normalize or Normalize()
        self.labels = {category: label for label, category in enumerate(data.categories)}
        self.aspect_ratios = np.array([image.width / image.height for image in data.images])
        # One block of bytes instead of millions of Python objects: forked workers would copy the memory pages of those
        # as soon as their reference counts change.
        packed = [pickle.dumps(image, pickle.HIGHEST_PROTOCOL) for image in data.images]
        self._ends = np.cumsum([len(part) for part in packed])
        self._bytes = np.frombuffer(b"".join(packed), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def record(self, index: int) -> CocoImage:
        """Entry of one image."""
        start = self._ends[index - 1] if index else 0
        image: CocoImage = pickle.loads(self._bytes[start : self._ends[index]].tobytes())
        return image

    def __getitem__(self, index: int) -> Sample | BadImage:
        record = self.record(index)
        try:
            pixels = read_pixels(record)
        # Damaged bytes make PIL's formats raise nearly any exception, and only the reading runs here.
        except Exception as err:
            reason = str(err) if isinstance(err, ValueError) else describe(err)
            return BadImage(index, str(BadImageError(str(record.path), index, reason)))
        boxes = torch.tensor([entry["bbox"] for entry in record.annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        view = self.transform(start_view(pixels, boxes))
        target = self._build_target(record, view) if self.with_targets else None
        return Sample(self.normalize(view.image), target, (record.height, record.width), record.id)

    def _build_target(self, record: CocoImage, view: View) -> Target:
        entries = [record.annotations[place] for place in view.kept.tolist()]
        segmentations = [entry["segmentation"] for entry in entries]
        masks = sample_masks(segmentations, record.height, record.width, view.rows, view.columns)
        return {
            "boxes": view.boxes,
            "labels": torch.tensor([self.labels[entry["category_id"]] for entry in entries], dtype=torch.int64),
            "masks": torch.from_numpy(masks),
            "image_id": record.id,
        }


def read_pixels(record: CocoImage) -> Tensor:
    """Reads an image as uint8 (3, H, W), RGB, turned by its EXIF tag where only that gives the annotated size.

    Raises:
        ValueError: the image has another size than the annotation file says.
        Exception: whatever PIL raises.
    """
    with Image.open(record.path) as stored:
        expected = record.width, record.height
        image = stored if stored.size == expected else ImageOps.exif_transpose(stored)
        if image.size != expected:
            size = f"{stored.width}x{stored.height}"
            raise ValueError(f"it is {size}, the annotation file says {record.width}x{record.height}")
        return pil_to_tensor(convert_image(image, "RGB"))


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
