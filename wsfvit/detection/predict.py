"""The predict command: objects in pictures, drawn on them and as JSON."""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsfvit.data.image_files import find_images, read_image
from wsfvit.detection.checkpoint import Setting, load_detector
from wsfvit.detection.data.batch import PaddingCollate, Sample
from wsfvit.detection.data.transforms import start_view
from wsfvit.detection.draw import draw_detections
from wsfvit.detection.evaluate import encode_detections
from wsfvit.detection.evaluation import Found, to_files
from wsfvit.detection.model.detector import Detector
from wsfvit.utils.distributed import resolve_device
from wsfvit.utils.errors import UserError
from wsfvit.utils.files import make_folder, write_atomic, write_text_atomic
from wsfvit.utils.precision import amp_dtype, autocast
from wsfvit.utils.progress import Progress

FILE = "detections.json"


def run_predict(args: argparse.Namespace) -> dict[str, Any]:
    """Writes a drawing of each picture, and ``detections.json``.

    Returns:
        What the JSON file holds: COCO's ``images`` and ``categories``, and ``annotations`` with the detections, best
        first in each image, each with its ``score``.

    Raises:
        UserError: something does not fit, or a picture could not be read (the others are done first).
    """
    paths = find_images(args.images)
    device = resolve_device(args.device)
    detector, setting, _ = load_detector(
        args.checkpoint,
        device,
        use_ema=args.use_ema,
        trust=args.trust_checkpoint,
        short_side=args.short_side,
        long_side=args.long_side,
        max_detections=args.max_detections,
    )
    folder = Path(args.out)
    make_folder(folder)
    category_ids = list(setting.categories)
    content: dict[str, Any] = {
        "images": [],
        "categories": [{"id": key, "name": name} for key, name in setting.categories.items()],
        "annotations": [],
    }
    unreadable: list[str] = []
    names = _drawing_names(paths)
    with Progress("predict", len(paths), interval=10) as progress:
        for number, path, image in _read(paths, unreadable):
            found = _detect(detector, setting, image, number, device, amp_dtype(args), args.score)
            masks = None if args.no_masks else found.masks
            drawing = draw_detections(
                image, found.boxes, found.scores, found.labels, masks, setting.names, min_score=args.score
            )
            write_atomic(folder / names[path], partial(drawing.save, format="PNG"))
            content["images"].append(
                {
                    "id": number,
                    "file_name": str(path),
                    "height": image.height,
                    "width": image.width,
                    "drawing": names[path],
                }
            )
            entries = encode_detections(number, found.boxes, found.scores, found.labels, found.masks, category_ids)
            content["annotations"] += entries
            progress.step(1, objects=len(entries))
    write_text_atomic(folder / FILE, json.dumps(content) + "\n")
    print(f"{len(content['annotations'])} objects in {len(content['images'])} pictures: {folder / FILE}")
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(paths)} images could not be read: {'; '.join(unreadable)}")
    return content


def _drawing_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for the drawing of each picture; pictures of equal names get their folders' names too."""
    stems = [path.stem for path in paths]
    names: dict[Path, str] = {}
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else "_".join(path.with_suffix("").parts[-3:]).strip("/")
        while f"{name}.png" in names.values():
            name += "_"
        names[path] = f"{name}.png"
    return names


def _read(paths: Sequence[Path], unreadable: list[str]) -> Iterator[tuple[int, Path, Image.Image]]:
    """Numbers from 1, paths and readable pictures; what cannot be read is noted in ``unreadable``."""
    for number, path in enumerate(paths, start=1):
        try:
            yield number, path, read_image(path)
        except UserError as err:
            unreadable.append(str(err))


@torch.no_grad()
def _detect(
    detector: Detector,
    setting: Setting,
    image: Image.Image,
    number: int,
    device: torch.device,
    dtype: torch.dtype | None,
    score: float,
) -> Found:
    """What is in a picture with at least ``score``, on the CPU."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    view = setting.transform(start_view(pixels, torch.zeros(0, 4)))
    sample = Sample(setting.normalize(view.image), None, (image.height, image.width), number)
    batch = PaddingCollate(setting.multiple)([sample])
    with autocast(device, dtype):
        (detections,) = detector(batch.images.to(device), batch.sizes)
    enough = detections.scores >= score
    kept = type(detections)(*(part[enough].cpu() for part in detections))
    return next(to_files([kept], batch))
