"""The predict command: objects in images, drawn on them and as JSON."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from wsfvit.data.image_files import find_images, read_image
from wsfvit.detection.checkpoint import Setting, load_detector
from wsfvit.detection.data.dataset import PaddingCollate, Sample
from wsfvit.detection.data.transforms import start_view
from wsfvit.detection.evaluation import ImageDetections, encode_detections, finite_outputs, to_image_detections
from wsfvit.detection.figures import draw_detections, enlarge
from wsfvit.detection.model.detector import Detector
from wsfvit.utils.distributed import resolve_device
from wsfvit.utils.errors import UserError
from wsfvit.utils.figures import write_png
from wsfvit.utils.files import make_folder, to_json, write_text_atomic
from wsfvit.utils.precision import amp_dtype, autocast
from wsfvit.utils.progress import Progress

FILE = "detections.json"


def run_predict(args: argparse.Namespace) -> dict[str, Any]:
    """Writes a drawing of each image, and ``detections.json``.

    Returns:
        Content of the JSON file: COCO's ``images`` and ``categories``, and ``annotations`` with the detections, best
        first in each image, each with its ``score``.

    Raises:
        UserError: something does not fit, or an image could not be read (the others are done first).
    """
    paths = find_images(args.images)
    changes = {key: getattr(args, key) for key in ("short_side", "long_side", "max_detections")}
    device = resolve_device(args.device)
    detector, setting, _ = load_detector(args.checkpoint, device, args.use_ema, args.trust_checkpoint, **changes)
    # A detector that was trained on boxes only has meaningless masks.
    with_masks = bool(detector.config.mask_loss_weight) and not args.no_masks
    folder = Path(args.out)
    make_folder(folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    unreadable: list[str] = []
    names = _drawing_names(paths)
    with Progress("predict", len(paths), interval=10) as progress:
        for number, path in enumerate(paths, start=1):
            try:
                image = read_image(path)
            except UserError as err:
                unreadable.append(str(err))
                continue
            found = _detect(detector, setting, image, number, args)
            drawing = draw_detections(*enlarge(image, found), setting.names, args.score, with_masks=with_masks)
            write_png(folder / names[path], drawing)
            size = {"height": image.height, "width": image.width}
            images.append({"id": number, "file_name": str(path), **size, "drawing": names[path]})
            entries = encode_detections(found, list(setting.categories))
            if not detector.config.mask_loss_weight:
                entries = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in entries]
            annotations += entries
            progress.step(1, objects=len(entries))
    categories = [{"id": key, "name": name} for key, name in setting.categories.items()]
    content = {"images": images, "categories": categories, "annotations": annotations}
    write_text_atomic(folder / FILE, to_json(content) + "\n")
    print(f"{len(annotations)} objects in {len(images)} images: {folder / FILE}")
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(paths)} images could not be read: {'; '.join(unreadable)}")
    return content


def _drawing_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for the drawing of each image; images of equal names get their folders' names too."""
    stems = [path.stem for path in paths]
    names: dict[Path, str] = {}
    for path in paths:
        name = path.stem if stems.count(path.stem) == 1 else "_".join(path.with_suffix("").parts[-3:]).strip("/")
        while f"{name}.png" in names.values():
            name += "_"
        names[path] = f"{name}.png"
    return names


@torch.no_grad()
def _detect(
    detector: Detector, setting: Setting, image: Image.Image, number: int, args: argparse.Namespace
) -> ImageDetections:
    """Detections of an image that score at least ``--score``, on the CPU."""
    device = next(detector.parameters()).device
    view = setting.transform(start_view(pil_to_tensor(image), torch.zeros(0, 4)))
    sample = Sample(setting.normalize(view.image), None, (image.height, image.width), number)
    batch = PaddingCollate(setting.multiple)([sample])
    with autocast(device, amp_dtype(args)), finite_outputs(detector):
        (detections,) = detector(batch.images.to(device), batch.sizes)
    enough = detections.scores >= args.score
    kept = type(detections)(*(part[enough].cpu() for part in detections))
    return next(to_image_detections([kept], batch))
