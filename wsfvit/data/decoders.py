"""Image decoders by the names of ``--decoder``; 16-bit grey is scaled."""

import contextlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

DECODERS = ("pillow", "torchvision")


def convert_image(image: Image.Image, mode: str | None) -> Image.Image:
    """Decode the pixels of ``image`` in another PIL mode, 16-bit grey scaled to 8 bits (the upper byte).

    PIL itself clips 16-bit grey at 255, which makes images white. As in timm and torchvision, the EXIF orientation is
    not applied and transparency is dropped.
    """
    if not mode or image.mode == mode:
        image.load()
        return image
    # I;16 and its byte orders; older versions of PIL open 16-bit PNG as 32-bit I.
    if image.mode.startswith("I") and not mode.startswith(("I", "F")):
        pixels = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image.convert(mode)


def decode_image(file: Any, mode: str | None, decoder: str = "pillow") -> Image.Image | torch.Tensor:
    """Decode an image file.

    ``torchvision`` is used for RGB JPEG files only (both decoders are builds of libjpeg-turbo and give equal pixels).
    All other files (grey, CMYK, other formats) and those it cannot read are left to Pillow and its error messages.

    Args:
        file: Open binary file.
        mode: PIL mode of the result; None keeps the file's.
        decoder: A name from ``DECODERS``.

    Returns:
        A PIL image, or what ``torchvision`` decoded: uint8 (3, H, W), channels last in memory.

    Raises:
        Exception: Of nearly any type, from Pillow, for damaged files.
    """
    image = Image.open(file)
    if decoder == "torchvision" and image.format == "JPEG" and image.mode == mode == "RGB":
        file.seek(0)
        encoded = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):
            pixels: torch.Tensor = decode_jpeg(encoded, ImageReadMode.RGB)
            return pixels
    return convert_image(image, mode)


def to_pil(image: Image.Image | torch.Tensor) -> Image.Image:
    """The result of ``decode_image`` as a PIL image."""
    if isinstance(image, torch.Tensor):
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return image
