"""Image decoders by the names of ``--decoder``; PIL modes by the number of channels; scaling of grey to 8 bits."""

import contextlib
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from wsfvit.utils.errors import UserError

DECODERS = ("pillow", "torchvision")
# PIL modes of 8 bits per channel that the transforms work on, and their numbers of channels.
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "YCbCr": 3, "HSV": 3, "RGBA": 4, "CMYK": 4}
# An integer image whose largest value needs this many bits less than its type has comes out black.
UNUSED_BITS = 4


def image_mode(in_chans: int, mode: str | None = None) -> str:
    """The PIL mode of images with ``in_chans`` channels: ``mode`` where given, else grey or RGB.

    Raises:
        UserError: The mode is not one of ``CHANNELS`` or has another number of channels, or none is given for other
            than 1 or 3 channels.
    """
    if mode is None and in_chans in (1, 3):
        return "L" if in_chans == 1 else "RGB"
    if mode is not None and mode not in CHANNELS:
        raise UserError(f"--input-img-mode {mode}: use one of {', '.join(CHANNELS)}")
    if mode is not None and CHANNELS[mode] == in_chans:
        return mode
    if mode is not None:
        raise UserError(
            f"--input-img-mode {mode} has {CHANNELS[mode]} channels, the model takes {in_chans}: pass "
            f"--in-chans {CHANNELS[mode]}, or another mode"
        )
    flags = " or ".join(f"--input-img-mode {name}" for name, count in CHANNELS.items() if count == in_chans)
    raise UserError(f"the model takes {in_chans} channels, image files have 1 or 3: pass {flags or '--in-chans 3'}")


def convert_image(image: Image.Image, mode: str | None, tags: Any = None) -> Image.Image:
    """Decode the pixels of ``image`` in another PIL mode, grey of more than 8 bits scaled to 8 bits.

    PIL itself clips such grey at 255. Integers are scaled by the range of their type, or that of the TIFF tags
    BitsPerSample and MaxSampleValue; floats by 255 if all lie in 0..1, and taken as they are if all lie in 0..255. As
    in timm and torchvision, the EXIF orientation is not applied and transparency is dropped.

    Args:
        image: An opened image.
        mode: PIL mode of the result; None keeps the image's.
        tags: TIFF tags of an image that has lost its own.

    Raises:
        ValueError: The values are negative or not finite, or of an unknown range: floats above 255, or integers that
            fill less than 1/16 of the range of their type.
    """
    if not mode or image.mode == mode:
        image.load()
        return image
    if image.mode.startswith(("I", "F")) and not mode.startswith(("I", "F")):
        tags = tags or getattr(image, "tag_v2", {})
        image = Image.fromarray(_to_bytes(np.asarray(image), image.mode, tags))
    return image.convert(mode)


def _to_bytes(pixels: np.ndarray, mode: str, tags: Any) -> np.ndarray:
    """Grey values (H, W) of PIL mode I, I;16 or F as uint8; see ``convert_image``."""
    low, high = pixels.min().item(), pixels.max().item()
    if not (low >= 0 and high < math.inf):
        raise ValueError(f"grey values from {low:g} to {high:g}: scale them to 8 or 16 bits without sign")
    if mode == "F":
        if high > 255:
            raise ValueError(f"float values up to {high:g}, neither within 0..1 nor 0..255: scale them to one of these")
        return (pixels * 255).round().astype(np.uint8) if high <= 1 else pixels.astype(np.uint8)
    # I;16 and its byte orders. Mode I is 16-bit PNG or PPM of older versions of PIL, or a TIFF that says more.
    bits = tags.get(258, (16,))[0] - (tags.get(339, (1,))[0] == 2)
    if (top := int(tags.get(281, (0,))[0])) >= max(high, 255):
        bits = top.bit_length()
    if 0 < high < 1 << (bits - UNUSED_BITS):
        raise ValueError(
            f"values up to {high} in {bits} bits, which would come out black: scale them to 8 or 16 bits, or give a "
            "TIFF the tag MaxSampleValue"
        )
    return (pixels.astype(np.int64) >> max(bits - 8, 0)).clip(0, 255).astype(np.uint8)


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
            return decode_jpeg(encoded, ImageReadMode.RGB)
    return convert_image(image, mode)


def to_pil(image: Image.Image | torch.Tensor) -> Image.Image:
    """The result of ``decode_image`` as a PIL image."""
    if isinstance(image, torch.Tensor):
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return image
