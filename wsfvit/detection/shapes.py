"""Generated images of coloured shapes with exact masks, as a folder in COCO's format, to try detection on."""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from wsfvit.data.seeding import derive_seed
from wsfvit.detection.data.coco_masks import coco_mask_module, encode_masks
from wsfvit.utils.errors import UserError
from wsfvit.utils.figures import write_png
from wsfvit.utils.files import make_folder, to_json, write_text_atomic

CATEGORIES = ("circle", "square", "triangle")
# Attempts to place one more shape; a crowded image just gets fewer.
ATTEMPTS = 20


def run_shapes(args: argparse.Namespace) -> None:
    """Writes a training and a validation folder of different images; see ``write_shapes``."""
    for split, count, seed in (("train", args.train_count, args.seed), ("val", args.val_count, args.seed + 1)):
        annotations, _ = write_shapes(Path(args.folder) / split, count, tuple(args.size), seed)
        print(f"{count} images: {annotations}")
    print(f"next: python -m wsfvit.detection train {args.folder} -c configs/detection/shapes.yaml")


def write_shapes(
    folder: str | os.PathLike[str], count: int = 64, size: tuple[int, int] = (96, 128), seed: int = 0
) -> tuple[Path, Path]:
    """Writes ``count`` images of one to four shapes each, which never overlap.

    Each image depends only on (seed, its number, size). Every third one is in portrait format, so that batches meet
    both aspect ratios.

    The folder gets ``images/*.png`` and ``instances.json``, and ``size`` is the short and the long side in pixels, at
    least 32. Returns the annotation file and the folder of images, as ``read_coco`` takes them.

    Raises:
        UserError: a size below 32 pixels, or the folder cannot be written.
    """
    if min(size) < 32 or count < 1:
        raise UserError(f"{count} images of {size[0]}x{size[1]} pixels: at least one, and 32 pixels, are needed")
    images, annotations = Path(folder, "images"), Path(folder, "instances.json")
    make_folder(images)
    module = coco_mask_module()
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": key, "name": name} for key, name in enumerate(CATEGORIES, start=1)],
    }
    for number in range(1, count + 1):
        height, width = (max(size), min(size)) if number % 3 == 0 else (min(size), max(size))
        pixels, labels, masks = draw_shapes(height, width, derive_seed(seed, number))
        path = images / f"{number:06d}.png"
        write_png(path, pixels)
        content["images"].append({"id": number, "file_name": path.name, "height": height, "width": width})
        for label, rle in zip(labels, encode_masks(masks), strict=True):
            entry = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0}
            box, area = module.toBbox(rle).astype(int).tolist(), int(module.area(rle))
            content["annotations"].append({**entry, "bbox": box, "area": area, "segmentation": rle})
    write_text_atomic(annotations, to_json(content))
    return annotations, images


def draw_shapes(height: int, width: int, seed: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Draws one image: pixels uint8 (H, W, 3), labels (indices in ``CATEGORIES``), and masks bool (N, H, W).

    A mask has the pixels whose centres lie inside its shape.
    """
    random = np.random.default_rng(seed)
    dark = random.integers(0, 90, 3)
    pixels = (dark + random.integers(0, 40, (height, width, 1))).astype(np.uint8)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    taken = np.zeros((height, width), bool)
    for _ in range(random.integers(1, 5)):
        for _ in range(ATTEMPTS):
            label = int(random.integers(len(CATEGORIES)))
            radius = random.uniform(0.12, 0.28) * min(height, width)
            y, x = random.uniform(radius, height - radius), random.uniform(radius, width - radius)
            mask = _rasterise(label, y, x, radius, height, width)
            if not (mask & taken).any():
                break
        else:
            continue
        taken |= mask
        pixels[mask] = random.integers(110, 256, 3)
        labels.append(label)
        masks.append(mask)
    return pixels, labels, np.stack(masks)


def _rasterise(label: int, y: float, x: float, radius: float, height: int, width: int) -> np.ndarray:
    dy, dx = (np.arange(height) + 0.5 - y)[:, None], (np.arange(width) + 0.5 - x)[None]
    if CATEGORIES[label] == "circle":
        return np.asarray(dy**2 + dx**2 <= radius**2)
    if CATEGORIES[label] == "square":
        return np.maximum(abs(dy), abs(dx)) <= radius
    return (dy <= radius) & (2 * abs(dx) <= dy + radius)
