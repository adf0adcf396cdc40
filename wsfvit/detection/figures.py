"""Figures of detection: boxes, masks, names and scores drawn on images."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from wsfvit.data.image_files import read_image
from wsfvit.detection.data.dataset import DetectionBatch
from wsfvit.detection.data.transforms import Normalize
from wsfvit.detection.evaluation import ImageDetections
from wsfvit.train.loggers import RunLog
from wsfvit.utils.figures import write_png

FILE = "detections.png"
HEIGHT = 512  # of each image in FILE, in pixels
MIN_SIDE = 512  # of a drawing, in pixels: names beside smaller objects would hide them
MAX_SIDE = 8192  # of an enlarged drawing
MASK_OPACITY = 0.45
# Steps of the golden ratio around the colour wheel: neighbouring categories differ most, and no two are equal.
HUE_STEP = 0.618034


def draw_targets(batch: DetectionBatch, normalize: Normalize, names: Sequence[str]) -> Tensor:
    """Draws the boxes and masks of a training batch: float32 (B, 3, H, W) from 0 to 1, on the CPU."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalize.mean, normalize.std))
    drawn = torch.zeros(batch.images.shape)
    for canvas, image, (h, w), target in zip(drawn, batch.images.cpu(), batch.sizes, batch.targets, strict=True):
        pixels = (255 * (image[:, :h, :w] * std + mean)).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        boxes, labels, masks = (target[key].cpu() for key in ("boxes", "labels", "masks"))
        objects = ImageDetections(target["image_id"], boxes, torch.ones(len(boxes)), labels, masks.bool())
        drawing = draw_detections(Image.fromarray(pixels), objects, names, min_score=0.0)
        canvas[:, :h, :w] = pil_to_tensor(drawing).float() / 255
    return drawn


def draw_found(
    found: Sequence[ImageDetections],
    paths: Mapping[int, Path],
    names: Sequence[str],
    log: RunLog,
    update: int,
    with_masks: bool,
) -> None:
    """Draws detections on their images, side by side, to ``FILE`` in the run folder and to TensorBoard."""
    drawings = []
    for detections in found:
        enlarged = enlarge(read_image(paths[detections.image_id]), detections)
        image = draw_detections(*enlarged, names, with_masks=with_masks)
        drawings.append(np.asarray(image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT))))
    if drawings:
        row = np.concatenate(drawings, axis=1)
        write_png(log.folder / FILE, row)
        log.log_image("detections", torch.from_numpy(row).permute(2, 0, 1), update)


def enlarge(image: Image.Image, found: ImageDetections) -> tuple[Image.Image, ImageDetections]:
    """Enlarges an image and its detections by an integer factor, to sides of at least MIN_SIDE pixels."""
    factor = max(1, min(-(-MIN_SIDE // min(image.size)), MAX_SIDE // max(image.size)))
    masks = found.masks.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    size = image.width * factor, image.height * factor
    return image.resize(size), replace(found, boxes=found.boxes * factor, masks=masks)


def draw_detections(
    image: Image.Image, found: ImageDetections, names: Sequence[str], min_score: float = 0.3, with_masks: bool = True
) -> Image.Image:
    """Draws detections that score at least ``min_score`` on a copy of an RGB image, the best on top.

    ``names`` has the name of each label; with ``with_masks`` masks are filled.
    """
    # Ascending scores, so that the best ones end up on top.
    order = [index for index in found.scores.argsort().tolist() if found.scores[index] >= min_score]
    pixels = np.array(image)
    if with_masks:
        for index in order:
            mask, color = found.masks[index].cpu().numpy(), category_color(int(found.labels[index]))
            mixed = (1 - MASK_OPACITY) * pixels[mask] + MASK_OPACITY * np.array(color)
            pixels[mask] = mixed.round().astype(np.uint8)
    drawing = Image.fromarray(pixels)
    for index in order:
        label = int(found.labels[index])
        text = f"{names[label]} {100 * float(found.scores[index]):.0f}%"
        _draw_box(drawing, found.boxes[index].tolist(), text, category_color(label))
    return drawing


def category_color(label: int) -> tuple[int, int, int]:
    """The colour (red, green, blue) of a category; lightness changes every seven categories."""
    value = 1.0 - 0.2 * (label // 7 % 3)
    red, green, blue = colorsys.hsv_to_rgb(label * HUE_STEP % 1, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_box(drawing: Image.Image, box: list[float], text: str, color: tuple[int, int, int]) -> None:
    canvas = ImageDraw.Draw(drawing)
    line = max(1, round(min(drawing.size) / 300))
    x1, y1, x2, y2 = (round(side) for side in box)
    canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=line)
    font = ImageFont.load_default(max(9, min(drawing.size) / 32))
    _, _, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right + 2 * line, bottom + 2 * line
    # Above the box if there is room, and inside the image in any case.
    x = max(0, min(x1, drawing.width - width))
    y = y1 - height if y1 >= height else min(y1, drawing.height - height)
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    canvas.text((x + line, y + line), text, fill="black" if light else "white", font=font)
