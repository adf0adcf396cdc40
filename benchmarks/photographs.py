"""JPEG photographs for benchmarks of reading: given or generated, in any size, as folder, tar file or parquet."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsfvit.data import create_dataset
from wsfvit.data.seeding import derive_seed
from wsfvit.utils.errors import UserError

CLASSES = 10
# ImageNet's most frequent size.
GENERATED_SIZE = (500, 375)
GENERATED_QUALITY = 90


def read_jpegs(path: str, count: int) -> list[bytes]:
    """``count`` files of an image folder or .tar, evenly spread over it; all where it holds fewer.

    Raises:
        UserError: the folder or file does not exist or holds no images.
    """
    reader = create_dataset("", path, "train").reader  # type: ignore[attr-defined]
    blobs = []
    for place in range(min(count, len(reader))):
        file, *_ = reader[place * len(reader) // min(count, len(reader))]
        with file:
            blobs.append(file.read())
    return blobs


def generate_jpegs(count: int) -> list[bytes]:
    """JPEG files of noise whose amplitude falls with the frequency f as 1/f, as in photographs (Field, 1987).

    The channels share most of it. Equal numbers give equal files.
    """
    width, height = GENERATED_SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no constant part
    blobs = []
    for index in range(count):
        noise = np.random.default_rng(derive_seed(index)).standard_normal((4, height, width))
        planes = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (height, width))
        planes /= planes.std((1, 2), keepdims=True)
        pixels = (128 + 50 * (0.8 * planes[:1] + 0.6 * planes[1:])).clip(0, 255).astype(np.uint8)
        blobs.append(_encode(Image.fromarray(pixels.transpose(1, 2, 0)), GENERATED_QUALITY))
    return blobs


def resize_jpegs(blobs: Sequence[bytes], longer_side: int, quality: int) -> list[bytes]:
    """The same photographs with another longer side in pixels, encoded again; 0 returns the files unchanged."""
    if not longer_side:
        return list(blobs)
    resized = []
    for blob in blobs:
        image = Image.open(io.BytesIO(blob)).convert("RGB")
        scale = longer_side / max(image.size)
        size = round(image.width * scale), round(image.height * scale)
        resized.append(_encode(image.resize(size, Image.Resampling.LANCZOS), quality))
    return resized


def _encode(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_source(kind: str, folder: Path, blobs: Sequence[bytes]) -> Any:
    """Write the files as ``folder``, ``tar`` or ``parquet``; returns name and root for ``create_dataset``.

    Raises:
        UserError: parquet is asked for and the datasets package is not installed.
    """
    if kind == "parquet":
        return _write_parquet(folder, blobs)
    for index, blob in enumerate(blobs):
        path = folder / f"class{index % CLASSES}" / f"{index:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(blob)
    if kind == "folder":
        return "", str(folder)
    with tarfile.open(folder / "images.tar", "w") as archive:
        for path in sorted(folder.glob("class*/*.jpg")):
            archive.add(path, path.relative_to(folder))
    return "", str(folder / "images.tar")


def _write_parquet(folder: Path, blobs: Sequence[bytes]) -> tuple[str, str]:
    try:
        import datasets
    except ImportError as err:
        raise UserError("parquet needs the datasets package, which is not installed: pip install datasets") from err
    datasets.disable_progress_bars()
    names = [f"class{number}" for number in range(CLASSES)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {
        "image": [{"bytes": blob, "path": None} for blob in blobs],
        "label": [index % CLASSES for index in range(len(blobs))],
    }
    (folder / "data").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(folder / "data" / "train.parquet"))
    return f"hfds/{folder / 'data'}", str(folder / "cache")
