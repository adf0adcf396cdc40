"""Pictures of a training: batches with their objects, validation images with what was found in them."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsfvit.data.image_files import read_image
from wsfvit.detection.data.batch import DetectionBatch
from wsfvit.detection.data.transforms import Normalize
from wsfvit.detection.draw import draw_detections
from wsfvit.detection.evaluation import Found
from wsfvit.train.loggers import RunLog
from wsfvit.utils.files import write_atomic

FILE = "detections.png"
HEIGHT = 320


def draw_targets(batch: DetectionBatch, normalize: Normalize, names: Sequence[str]) -> Tensor:
    """The images of a batch with their boxes and masks: float32 (B, 3, H, W) from 0 to 1, on the CPU."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalize.mean, normalize.std))
    drawn = torch.zeros(batch.images.shape)
    for place, image, (h, w), target in zip(drawn, batch.images.cpu(), batch.sizes, batch.targets, strict=True):
        pixels = (255 * (image[:, :h, :w] * std + mean)).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        boxes, labels, masks = (target[key].cpu() for key in ("boxes", "labels", "masks"))
        picture = draw_detections(
            Image.fromarray(pixels), boxes, torch.ones(len(boxes)), labels, masks.bool(), names, min_score=0.0
        )
        place[:, :h, :w] = _to_tensor(picture).float() / 255
    return drawn


def draw_found(
    found: Sequence[Found], paths: Mapping[int, Path], names: Sequence[str], log: RunLog, update: int
) -> None:
    """Draws detections on their images, side by side, into the run folder and TensorBoard."""
    pictures = []
    for part in found:
        image = draw_detections(
            read_image(paths[part.image_id]), part.boxes, part.scores, part.labels, part.masks, names
        )
        pictures.append(np.asarray(image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT))))
    if pictures:
        row = Image.fromarray(np.concatenate(pictures, axis=1))
        write_atomic(log.folder / FILE, partial(row.save, format="PNG"))
        log.log_image("detections", _to_tensor(row), update)


def _to_tensor(image: Image.Image) -> Tensor:
    """uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
