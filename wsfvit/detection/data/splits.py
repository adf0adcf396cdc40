"""Training and validation data of a command line: files and folders found, read and checked."""

from pathlib import Path

from wsfvit.detection.data.coco import CocoData, OnBadAnnotation, read_coco
from wsfvit.utils.errors import UserError

# Where a folder may have the annotations and the images of a split, the first that exists: as COCO comes, then others.
ANNOTATIONS = (
    "annotations/instances_{}2017.json",
    "annotations/instances_{}.json",
    "instances_{}.json",
    "{}/instances.json",
)
IMAGES = ("{}2017", "images/{}2017", "{}/images", "{}", "images/{}", "images")


def read_split(
    root: str | None,
    split: str,
    images: str | None,
    annotations: str | None,
    on_bad_annotation: OnBadAnnotation,
    flags: str = "",
) -> CocoData:
    """Reads a split.

    Args:
        root: Folder of all data, or None.
        split: ``train`` or ``val``.
        images: Folder of the images, or None: the one in ``root``.
        annotations: JSON file, or None: the one in ``root``.
        on_bad_annotation: As ``read_coco`` takes it.
        flags: What the flags of ``images`` and ``annotations`` begin with, for messages.

    Raises:
        UserError: a file or folder is neither named nor found, or the annotations are wrong.
    """
    found_annotations = annotations or _find(root, split, ANNOTATIONS, f"--{flags}annotations FILE")
    found_images = images or _find(root, split, IMAGES, f"--{flags}images DIR")
    return read_coco(found_annotations, found_images, on_bad_annotation)


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


def check_categories(data: CocoData, expected: dict[int, str], whose: str) -> None:
    """Refuses data whose categories are not those that a detector knows.

    Raises:
        UserError: naming the first that differs.
    """
    for key in sorted(data.categories.keys() | expected.keys()):
        here, there = data.categories.get(key, "none"), expected.get(key, "none")
        if here != there:
            raise UserError(f"category {key} is '{here}' in this data and '{there}' in {whose}: they must be the same")
