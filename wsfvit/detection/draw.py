"""Boxes, masks, names and scores drawn on an image."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MASK_OPACITY = 0.45
# Steps of the golden ratio around the colour wheel: neighbouring categories differ most, and no two are equal.
HUE_STEP = 0.618034


def category_color(label: int) -> tuple[int, int, int]:
    """The colour (red, green, blue) of a category, the same in every picture; lightness changes every seven."""
    value = 1.0 - 0.2 * (label // 7 % 3)
    red, green, blue = colorsys.hsv_to_rgb(label * HUE_STEP % 1, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Image.Image,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    masks: Tensor | None,
    names: Sequence[str],
    min_score: float = 0.3,
) -> Image.Image:
    """Draws the detections on a copy of an RGB image, the best ones on top.

    Args:
        image: The original image, RGB, H x W.
        boxes: (M, 4) x1, y1, x2, y2 in its pixels.
        scores: (M,) from 0 to 1.
        labels: int64 (M,).
        masks: bool (M, H, W), or None for boxes alone.
        names: Name of each label.
        min_score: Detections with a lower score are left out.

    Returns:
        The drawing, as large as the image.
    """
    # Weakest first, so that the best ones end up on top.
    order = [place for place in scores.argsort().tolist() if scores[place] >= min_score]
    pixels = np.array(image)
    if masks is not None:
        for place in order:
            _blend(pixels, masks[place].cpu().numpy(), category_color(int(labels[place])))
    drawing = Image.fromarray(pixels)
    for place in order:
        label = int(labels[place])
        text = f"{names[label]} {100 * float(scores[place]):.0f}%"
        _draw_box(drawing, boxes[place].tolist(), text, category_color(label))
    return drawing


def _blend(pixels: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    """Mixes a colour into the pixels (H, W, 3) of a mask (H, W), in place."""
    mixed = (1 - MASK_OPACITY) * pixels[mask] + MASK_OPACITY * np.array(color)
    pixels[mask] = mixed.round().astype(np.uint8)


def _draw_box(drawing: Image.Image, box: list[float], text: str, color: tuple[int, int, int]) -> None:
    canvas = ImageDraw.Draw(drawing)
    line = max(1, round(min(drawing.size) / 300))
    x1, y1, x2, y2 = (round(side) for side in box)
    canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=line)
    font = ImageFont.load_default(max(9, min(drawing.size) / 32))
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right + 2 * line, bottom + 2 * line
    # Above the box if there is room, and inside the image in any case.
    x = max(0, min(x1, drawing.width - width))
    y = y1 - height if y1 >= height else min(y1, drawing.height - height)
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    canvas.text((x + line, y + line), text, fill="black" if light else "white", font=font)
