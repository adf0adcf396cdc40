"""COCO annotation files: found in a data folder, read, checked entry by entry, and filtered for training.

pycocotools does not check its input, so everything is checked here first. Problems are named by the id of their entry:
under ``raise`` they end the reading, under ``skip`` they are left out and counted.
"""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

from wsfvit.data.image_files import EXTENSIONS
from wsfvit.detection.data.coco_masks import Segmentation, check_segmentation, coco_mask_module, mask_box, to_rle
from wsfvit.utils.errors import UserError

OnBadAnnotation = Literal["raise", "skip"]
Entry = dict[str, Any]
_logger = logging.getLogger(__name__)
# Every process reads the same file: only one logs.
_logger.addFilter(lambda record: os.environ.get("RANK", "0") == "0")
MAX_LOGGED = 10
# Keys of an annotation that are kept.
KEYS = ("id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "area")
# Annotations and images of a split within a data folder, the first that exists: as COCO comes, then others.
ANNOTATIONS = (
    "annotations/instances_{}2017.json",
    "annotations/instances_{}.json",
    "instances_{}.json",
    "{}/instances.json",
)
IMAGES = ("{}2017", "images/{}2017", "{}/images", "{}", "images/{}", "images")


@dataclass(frozen=True)
class CocoImage:
    """An image of an annotation file."""

    id: int  # id in the file
    path: Path  # the image file
    height: int  # in pixels, as the annotation file says
    width: int  # in pixels
    # Entries of the file: ``bbox`` (x, y, w, h), ``category_id``, ``segmentation``, ``iscrowd``, ``area``, the last two
    # filled in where the file leaves them out.
    annotations: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class CocoData:
    """Content of an annotation file, without its problems."""

    categories: Mapping[int, str]  # id to name, sorted by id; the index of an id is its label
    images: tuple[CocoImage, ...]  # in the order of the file
    problems: tuple[str, ...] = ()  # one line for each entry that was left out

    def for_training(self, min_side: int = 32, keep_empty: bool = False) -> "CocoData":
        """Filters images and annotations as the published training does.

        Left out are crowds, objects less than a pixel wide or high, without area, or outside the image, and images
        smaller than ``min_side`` or without annotations, all counted by reason in one warning. An image whose
        annotations are all left out stays.

        Args:
            min_side: Smallest height and width of an image in pixels.
            keep_empty: Keep images without annotations, as background.

        Raises:
            UserError: no object is left.
        """
        counts: Counter[str] = Counter()
        images = []
        for image in self.images:
            if min(image.height, image.width) < min_side:
                counts[f"images smaller than {min_side} pixels"] += 1
                counts["objects in them"] += len(image.annotations)
            elif not image.annotations and not keep_empty:
                counts["images without annotations"] += 1
            else:
                reasons = [_why_not_trained_on(entry, image) for entry in image.annotations]
                counts.update(reason for reason in reasons if reason)
                kept = (entry for entry, reason in zip(image.annotations, reasons, strict=True) if not reason)
                images.append(replace(image, annotations=tuple(kept)))
        left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        if not any(image.annotations for image in images):
            why = f"left out: {left_out}" if left_out else "its images have no annotations"
            raise UserError(f"the training data has no object to learn from ({why}): correct the annotation file")
        if left_out:
            _logger.warning("left out of training: %s", left_out)
        return replace(self, images=tuple(images))

    def ground_truth(self) -> Entry:
        """The checked images and annotations as a COCO dictionary, for evaluation; warns where there is no object."""
        if all(entry["iscrowd"] for image in self.images for entry in image.annotations):
            _logger.warning("the evaluated data has no object: it has no average precision, and no epoch is the best")
        return {
            "images": [{"id": image.id, "height": image.height, "width": image.width} for image in self.images],
            "categories": [{"id": key, "name": name} for key, name in self.categories.items()],
            "annotations": [entry for image in self.images for entry in image.annotations],
        }


def _why_not_trained_on(entry: Entry, image: CocoImage) -> str:
    x, y, w, h = entry["bbox"]
    if entry["iscrowd"]:
        return "crowds"
    if w < 1 or h < 1:
        return "objects less than a pixel wide or high"
    if entry["area"] <= 0:
        return "objects of area 0"
    overlap = min(x + w, image.width) > max(x, 0) and min(y + h, image.height) > max(y, 0)
    return "" if overlap else "objects outside their image"


def check_categories(data: CocoData, expected: Mapping[int, str], owner: str) -> None:
    """Raises a ``UserError`` for the first category that differs from those of ``owner``, a detector or its data."""
    for key in sorted(data.categories.keys() | expected.keys()):
        here, there = data.categories.get(key, "none"), expected.get(key, "none")
        if here != there:
            raise UserError(f"category {key} is '{here}' in this data and '{there}' in {owner}: they must be the same")


def read_split(
    root: str | None,
    split: str,
    images: str | None,
    annotations: str | None,
    on_bad_annotation: OnBadAnnotation,
    flags: str = "",
    boxes_only: bool = False,
    boxes_from_masks: bool = False,
) -> CocoData:
    """Finds and reads the training or validation data of a command line.

    Args:
        root: Data folder, or None.
        split: ``train`` or ``val``.
        images, annotations: Folder of the images and JSON file, or None: those in ``root``.
        flags: Prefix of their flags, for messages.
        on_bad_annotation, boxes_only, boxes_from_masks: See ``read_coco``.

    Raises:
        UserError: a file or folder is neither named nor found, or the annotations are wrong.
    """
    found_annotations = annotations or _find(root, split, ANNOTATIONS, f"--{flags}annotations FILE")
    found_images = images or _find(root, split, IMAGES, f"--{flags}images DIR")
    return read_coco(found_annotations, found_images, on_bad_annotation, boxes_only, boxes_from_masks)


def _find(root: str | None, split: str, patterns: tuple[str, ...], flag: str) -> Path:
    if root is None:
        raise UserError(f"no data for '{split}': name a folder in COCO's layout, or pass {flag}")
    if not Path(root).is_dir():
        raise UserError(f"the data folder '{root}' does not exist")
    names = [pattern.format(split) for pattern in patterns]
    for name in names:
        if (Path(root) / name).exists():
            return Path(root) / name
    raise UserError(f"'{root}' has none of {', '.join(names)}: pass {flag}")


def read_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    on_bad_annotation: OnBadAnnotation = "raise",
    boxes_only: bool = False,
    boxes_from_masks: bool = False,
) -> CocoData:
    """Reads and checks an annotation file in COCO's format for instances.

    A warning compares it with the folder: images that only one of them has.

    Args:
        annotations: The JSON file.
        images: The folder that its file names are relative to.
        on_bad_annotation: ``raise`` ends with the first problem and their number; ``skip`` leaves them out and warns.
        boxes_only: Ignore the masks: each mask is its box.
        boxes_from_masks: Ignore the boxes: each box is that of its mask.

    Raises:
        UserError: the file cannot be read, is not an annotation file, has wrong categories, has a bad entry under
            ``raise``, or no image is left.
    """
    content = _load(Path(annotations))
    categories = _read_categories(content["categories"], annotations)
    reader = _Reader(categories, Path(images), boxes_only, boxes_from_masks)
    for entry in content["images"]:
        reader.add_image(entry)
    for entry in content["annotations"]:
        reader.add_annotation(entry)
    if difference := reader.compare_folder():
        _logger.warning("'%s' and the folder '%s' differ: %s", annotations, images, difference)
    _report(reader.problems, annotations, on_bad_annotation)
    if not reader.images:
        raise UserError(f"'{annotations}' names no image of the folder '{images}'")
    found = tuple(replace(image, annotations=tuple(reader.annotations[image.id])) for image in reader.images.values())
    return CocoData(categories, found, tuple(reader.problems))


def _load(path: Path) -> Entry:
    try:
        content = json.loads(path.read_bytes())
    except OSError as err:
        raise UserError(f"cannot read '{path}': {err.strerror or err}") from err
    except ValueError as err:  # not JSON, or not UTF-8
        raise UserError(f"'{path}' is not a JSON file: {err}") from err
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"'{path}' is not a COCO annotation file: it has no list '{key}'")
    return dict(content)


def _read_categories(entries: list[Any], path: Any) -> dict[int, str]:
    categories: dict[int, str] = {}
    for entry in entries:
        key = entry.get("id") if isinstance(entry, dict) else None
        if not _is_integer(key) or key in categories or not isinstance(entry.get("name"), str):
            raise UserError(f"'{path}': the category {entry!r} needs a name and a unique integer id")
        categories[key] = entry["name"]
    if not categories:
        raise UserError(f"'{path}' has no categories")
    return dict(sorted(categories.items()))


def _report(problems: Sequence[str], path: Any, on_bad_annotation: OnBadAnnotation) -> None:
    if not problems:
        return
    if on_bad_annotation == "raise":
        raise UserError(
            f"'{path}' has {len(problems)} problem(s), the first: {problems[0]}; "
            "repair the file, or pass --on-bad-annotation skip"
        )
    for problem in problems[:MAX_LOGGED]:
        _logger.warning("left out: %s", problem)
    if len(problems) > MAX_LOGGED:
        _logger.warning("left out in all: %d entries of '%s'", len(problems), path)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class _Reader:
    """Checks the entries of a file one by one and collects the problems."""

    categories: Mapping[int, str]
    folder: Path
    boxes_only: bool
    boxes_from_masks: bool
    images: dict[int, CocoImage] = field(default_factory=dict)
    annotations: dict[int, list[Entry]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _bad_images: set[int] = field(default_factory=set)
    _annotation_ids: set[int] = field(default_factory=set)
    _folders: dict[Path, dict[str, bool]] = field(default_factory=dict)  # whether an entry names each of its files
    _missing: list[Path] = field(default_factory=list)
    _lost: int = 0

    def add_image(self, entry: Any) -> None:
        key = entry.get("id") if isinstance(entry, dict) else None
        if not _is_integer(key):
            self.problems.append(f"an image without an integer id: {_shorten(entry)}")
        elif problem := self._check_image(entry):
            self.problems.append(f"image {key}: {problem}")
            self._bad_images.add(key)
        else:
            path = self.folder / entry["file_name"]
            self.images[key] = CocoImage(key, path, entry["height"], entry["width"])
            self.annotations[key] = []

    def _check_image(self, entry: Entry) -> str:
        if entry["id"] in self.images:
            return "its id is taken by an image before it"
        for side in ("height", "width"):
            if not _is_integer(entry.get(side)) or entry[side] < 1:
                return f"its {side} is {entry.get(side)!r}, not a positive integer"
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            return "it has no file_name"
        path = self.folder / name
        folder = path.parent
        if folder not in self._folders:  # each is listed once: network disks are slow per file
            self._folders[folder] = dict.fromkeys(os.listdir(folder) if folder.is_dir() else (), False)
        if path.name in self._folders[folder]:
            self._folders[folder][path.name] = True
            return ""
        self._missing.append(path)
        return f"there is no file '{path}'"

    def compare_folder(self) -> str:
        """Numbers and an example of the images that only the file or only the folder has; empty if there are none."""
        unnamed = [
            name
            for files in self._folders.values()
            for name, named in files.items()
            if not named and not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
        parts = []
        if unnamed:
            parts.append(f"{len(unnamed)} images of the folder have no entry (such as {min(unnamed)})")
        if self._missing:
            lost = f", with {self._lost} annotations of left-out images" if self._lost else ""
            parts.append(f"{len(self._missing)} entries have no image (such as {self._missing[0].name}){lost}")
        return "; ".join(parts)

    def add_annotation(self, entry: Any) -> None:
        key = entry.get("id") if isinstance(entry, dict) else None
        if not _is_integer(key):
            self.problems.append(f"an annotation without an integer id: {_shorten(entry)}")
            return
        image = entry.get("image_id")
        if _is_integer(image) and image in self._bad_images and image not in self.images:
            self._lost += 1
            return  # reported with its image
        if problem := self._check_annotation(entry):
            self.problems.append(f"annotation {key}: {problem}")
            return
        self._annotation_ids.add(key)
        entry = {name: entry.get(name) for name in KEYS}
        entry["iscrowd"] = entry["iscrowd"] or 0
        height, width = self.images[image].height, self.images[image].width
        if self.boxes_from_masks:
            entry["bbox"] = mask_box(entry["segmentation"], height, width)
        if self.boxes_only:
            entry["segmentation"] = _box_outline(entry["bbox"], height, width)
        if entry["area"] is None:
            entry["area"] = float(coco_mask_module().area(to_rle(entry["segmentation"], height, width)))
        self.annotations[image].append(entry)

    def _check_annotation(self, entry: Entry) -> str:
        key, category = entry.get("image_id"), entry.get("category_id")
        box: Any = entry.get("bbox")
        image = self.images.get(key) if _is_integer(key) else None
        if entry["id"] in self._annotation_ids:
            return "its id is taken by an annotation before it"
        if image is None:
            return f"there is no image {key!r}"
        if not _is_integer(category) or category not in self.categories:
            return f"there is no category {category!r}"
        if not self.boxes_from_masks:
            if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
                way = "; --boxes-from-masks takes boxes from the masks" if not box else ""
                return f"its bbox {_shorten(box)} is not x, y, width, height{way}"
            if box[0] > image.width or box[1] > image.height or box[0] + box[2] < 0 or box[1] + box[3] < 0:
                return f"its bbox {box} lies outside the image of {image.width}x{image.height}"
        if entry.get("iscrowd") not in (None, 0, 1):
            return f"its iscrowd is {entry['iscrowd']!r}, not 0 or 1"
        if entry.get("area") is not None and (not _is_number(entry["area"]) or entry["area"] < 0):
            return f"its area is {entry['area']!r}"
        if self.boxes_only and not self.boxes_from_masks:
            return ""
        segmentation: Any = entry.get("segmentation")
        if problem := check_segmentation(segmentation, image.height, image.width):
            return problem if segmentation else f"{problem}; --boxes-only trains without masks"
        return "" if self.boxes_from_masks or entry.get("iscrowd") else _compare_box(box, segmentation, image)


def _compare_box(box: list[float], segmentation: Segmentation, image: CocoImage) -> str:
    """The problem of a box (x, y, w, h) that contradicts its mask, or an empty string."""
    x, y, w, h = box
    left, top, width, height = mask_box(segmentation, image.height, image.width)
    right, bottom = left + width, top + height
    as_corners = _iou((x, y, w, h), (left, top, right, bottom))
    if as_corners > 0.9 and as_corners > 0.1 + _iou((x, y, x + w, y + h), (left, top, right, bottom)):
        return f"its bbox {box} is x1, y1, x2, y2 of its mask, not x, y, width, height"
    # One pixel more on each side, for rounding.
    inside = _overlap((x - 1, y - 1, x + w + 1, y + h + 1), (left, top, right, bottom))
    if isinstance(segmentation, list) and inside < 0.5 * width * height:
        return f"its bbox {box} holds less than half of its polygons, in {[left, top, width, height]}"
    return ""


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    shared = _overlap(a, b)
    union = sum(max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)) - shared
    return shared / union if union > 0 else 0.0


def _box_outline(box: list[float], height: int, width: int) -> list[list[float]]:
    """A box (x, y, w, h) as a polygon within the image."""
    x1, y1, x2, y2 = max(box[0], 0), max(box[1], 0), min(box[0] + box[2], width), min(box[1] + box[3], height)
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
