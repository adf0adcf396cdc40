"""Masks in COCO's three forms (polygons, RLE, uncompressed RLE): checked, decoded and encoded by pycocotools.

RLE lists the lengths of alternating runs of zeros and ones down the columns. pycocotools writes beyond its memory for
run lengths that do not add up to the image, so every mask of a file is checked first.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsfvit.utils.errors import import_optional

Segmentation = list[list[float]] | dict[str, Any]
# Largest coordinate of a polygon, in longer sides of the image; sound annotations leave the image by some pixels.
MAX_REACH = 4


def coco_mask_module() -> Any:
    """Import ``pycocotools.mask``, or raise a ``UserError`` that says how to install it."""
    advice = "COCO masks and COCO evaluation need pycocotools: pip install pycocotools"
    return import_optional("pycocotools.mask", advice)


def check_segmentation(segmentation: Any, height: int, width: int) -> str:
    """Checks a segmentation against the size of its image; returns the problem, or an empty string."""
    if isinstance(segmentation, dict):
        return _check_rle(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        return "its segmentation is neither polygons nor RLE"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _all_finite(polygon):
            return "a polygon is not a list of x, y, x, y, ... with at least three points"
        # pycocotools follows the outline pixel by pixel, however long it is.
        if max(map(abs, polygon)) > MAX_REACH * max(height, width):
            return "a polygon lies far outside the image"
    return ""


def _all_finite(values: list[Any]) -> bool:
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths inside
        return False
    return array.ndim == 1 and array.dtype.kind in "if" and bool(np.isfinite(array).all())


def _check_rle(rle: dict[str, Any], height: int, width: int) -> str:
    if rle.get("size") != [height, width]:
        return f"its RLE is of size {rle.get('size')}, the image of [{height}, {width}] (height, width)"
    counts: Any = rle.get("counts")
    if isinstance(counts, str):
        counts = decompress_counts(counts)
    elif isinstance(counts, list):
        counts = np.asarray(counts) if _all_finite(counts) else None
    if not isinstance(counts, np.ndarray) or counts.dtype.kind != "i":
        return "its RLE counts are neither a list of integers nor a compressed string"
    pixels = height * width
    if counts.min(initial=0) < 0 or counts.max(initial=0) > pixels or counts.sum() != pixels:
        return f"its RLE counts do not add up to {pixels}, the pixels of the image"
    return ""


def decompress_counts(text: str) -> np.ndarray | None:
    """Run lengths (int64) of a compressed RLE, or None if the text is malformed.

    The format is pycocotools' own: five bits of a number per character, lowest first, bit 5 set where more follow, and
    bit 4 of the last one for the sign; from the fourth number on it is the difference from the number two before.
    """
    codes = np.frombuffer(text.encode("latin-1", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = (codes & 32) == 0
    first = np.flatnonzero(np.concatenate(([True], last[:-1])))
    place = np.arange(len(codes)) - np.repeat(first, np.diff(np.append(first, len(codes))))
    if place.max() > 6:  # more than 35 bits: too large for a count of pixels
        return None
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    values -= np.where(codes[last] & 16, 1 << (5 * (place[last] + 1)), 0)
    values[1::2], values[2::2] = values[1::2].cumsum(), values[2::2].cumsum()
    return values


def to_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """The compressed RLE (``size``, ``counts`` as bytes) of a checked segmentation; polygons are united."""
    mask = coco_mask_module()
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return dict(mask.frPyObjects(segmentation, height, width))
        return segmentation
    return dict(mask.merge(mask.frPyObjects(segmentation, height, width)))


def mask_box(segmentation: Segmentation, height: int, width: int) -> list[float]:
    """The box (x, y, w, h) of a checked segmentation: of polygons their bounds within the image, of RLE its pixels."""
    if isinstance(segmentation, dict):
        box: list[float] = coco_mask_module().toBbox(to_rle(segmentation, height, width)).tolist()
        return box
    low_x, low_y = (min(min(polygon[start::2]) for polygon in segmentation) for start in (0, 1))
    high_x, high_y = (max(max(polygon[start::2]) for polygon in segmentation) for start in (0, 1))
    left, top, right, bottom = max(low_x, 0), max(low_y, 0), min(high_x, width), min(high_y, height)
    return [left, top, max(right - left, 0), max(bottom - top, 0)]


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """Compressed RLEs, ready for JSON, of bool or uint8 masks (N, H, W)."""
    # pycocotools wants (H, W, N) with the columns of each mask contiguous.
    columns = np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8, copy=False))
    rles = coco_mask_module().encode(columns)
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rles]


def sample_masks(
    segmentations: Sequence[Segmentation], height: int, width: int, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Decodes masks of a (height, width) image at selected rows and columns.

    Args:
        segmentations: N checked segmentations.
        height, width: Of the image.
        rows, columns: (h,) and (w,) source row and column of each row and column of the result, monotonic.

    Returns:
        uint8 (N, h, w). Nearest-neighbour resizing, flipping and cropping are such selections, so a chain of them costs
        one pass over the objects' boxes.
    """
    masks = np.zeros((len(segmentations), len(rows), len(columns)), np.uint8)
    module = coco_mask_module()
    for mask, segmentation in zip(masks, segmentations, strict=True):
        rle = to_rle(segmentation, height, width)
        x, y, w, h = module.toBbox(rle)
        inside_rows = np.flatnonzero((rows >= y) & (rows < y + h))
        inside_columns = np.flatnonzero((columns >= x) & (columns < x + w))
        if len(inside_rows) and len(inside_columns):
            top, bottom, left, right = inside_rows[0], inside_rows[-1] + 1, inside_columns[0], inside_columns[-1] + 1
            mask[top:bottom, left:right] = module.decode(rle)[np.ix_(rows[top:bottom], columns[left:right])]
    return masks
