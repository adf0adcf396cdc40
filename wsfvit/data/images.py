"""Datasets of image files: an unreadable image is named, never silently replaced."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

from wsfvit.data.decoders import decode_image
from wsfvit.utils.errors import UserError, first_line


class BadImageError(UserError):
    """An image that cannot be read: its file, or its name in the dataset; its index there; and the reason."""

    def __init__(self, name: str, index: int, reason: str) -> None:
        super().__init__(f"cannot read image '{name}' (index {index}): {reason}")
        self.name, self.index, self.reason = name, index, reason


class ImageDataset(Dataset[tuple[Any, Any]]):
    """Map-style dataset of (image, label) on a timm reader; timm's own class substitutes the next image for a bad one.

    Args:
        reader: A reader of ``timm.data.readers``: items (open file, label), ``filename(index)``, maybe class_to_idx.
        input_img_mode: PIL mode that images are converted to.
        decoder: See ``decode_image``.
    """

    def __init__(self, reader: Any, input_img_mode: str | None, decoder: str = "pillow") -> None:
        self.reader, self.input_img_mode, self.decoder = reader, input_img_mode, decoder
        self.transform: Callable[[Any], Any] | None = None  # set by timm's create_loader

    def __len__(self) -> int:
        return len(self.reader)

    def filename(self, index: int) -> str:
        """The file of one image; its index as text for a reader without files."""
        with contextlib.suppress(Exception):  # only used in messages
            if name := self.reader.filename(index, absolute=True):
                return os.fspath(name)
        return f"item {index}"

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Read one image.

        Raises:
            BadImageError: It cannot be read.
            IndexError: The index is out of range.
        """
        if index >= len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        try:
            file, label, *_ = self.reader[index]
            with contextlib.closing(file):
                image = decode_image(file, self.input_img_mode, self.decoder)
        # PIL raises nearly anything for damaged bytes, and only the reading runs here.
        except Exception as err:
            raise BadImageError(self.filename(index), index, describe(err)) from err
        return (image if self.transform is None else self.transform(image)), -1 if label is None else label


def describe(err: Exception) -> str:
    """The exception in one line."""
    return f"{type(err).__name__}: {first_line(err)}"
