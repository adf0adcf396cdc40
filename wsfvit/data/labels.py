"""Class maps, and checks that labels are classes of the model."""

import numbers
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from timm.data.readers.class_map import load_class_map

from wsfvit.utils.errors import UserError


def read_class_map(path: str, *folders: str) -> dict[Any, int]:
    """Read a class map: a .txt file of one class name per line, or a .pkl file of a dict from name to label.

    The path may be relative to one of ``folders``. A file that cannot be read, has an empty line or a name twice, or a
    label that is not an integer from 0 raises a ``UserError``.
    """
    found = next(filter(os.path.isfile, (os.path.join(folder, path) for folder in ("", *folders))), None)
    if found is None:
        raise UserError(f"--class-map {path} does not exist")
    try:
        if not found.lower().endswith(".txt"):
            class_map: dict[Any, int] = load_class_map(found)
        else:
            with open(found, encoding="utf-8-sig") as file:
                names = file.read().rstrip().split("\n")
            class_map = {name.strip(): label for label, name in enumerate(names)}
            if "" in class_map or len(class_map) < len(names):
                raise ValueError("a line is empty or repeated; write every class name once")
    except Exception as err:  # of nearly any type for a damaged .pkl file
        raise UserError(f"--class-map {path}: {err}") from err
    for name, label in class_map.items():
        if wrong := wrong_label(label):
            raise UserError(f"--class-map {path}: class '{name}' has {wrong}")
    return class_map


def wrong_label(label: Any, num_classes: int | None = None) -> str:
    """What is wrong with a label, or "" for an integer from 0 to ``num_classes - 1``."""
    if not isinstance(label, numbers.Integral) or isinstance(label, bool):
        return f"label {label!r}, which is not an integer"
    if not 0 <= int(label) < (np.inf if num_classes is None else num_classes):
        return f"label {label}, expected 0 to {'K - 1' if num_classes is None else num_classes - 1}"
    return ""


def check_labels(dataset: Any, num_classes: int) -> None:
    """Check all labels that a dataset knows without reading its images; its loader checks the others.

    Raises:
        UserError: One is not an integer from 0 to ``num_classes - 1``.
    """
    for label in _known_labels(dataset):
        if wrong := wrong_label(label, num_classes):
            raise UserError(
                f"the data has {wrong}: correct the data, name another label column with --target-key, or map names to "
                "labels with --class-map"
            )


def _known_labels(dataset: Any) -> Iterator[Any]:
    reader: Any = getattr(dataset, "reader", None)
    for holder in (dataset, reader):
        yield from dict(getattr(holder, "class_to_idx", None) or {}).values()
    targets = getattr(dataset, "targets", None)  # of torchvision
    if targets is not None:
        flat = np.asarray(targets)
        yield from np.unique(flat) if flat.ndim == 1 and flat.dtype != object else targets
    if not hasattr(reader, "iter_targets"):
        return
    table, key = reader.dataset, reader.label_key
    if key in table.column_names:
        # Each distinct value once: a million labels take milliseconds.
        for value in table.select_columns([key]).with_format("arrow")[:].column(key).unique().to_pylist():
            try:
                yield reader._get_target({key: value})
            except (KeyError, IndexError) as err:
                raise UserError(f"label {value!r} of column '{key}' is not in --class-map") from err
    elif reader.target_keys or "/" in key:
        yield from reader.iter_targets()
    else:
        raise UserError(f"the data has no column '{key}', only {', '.join(table.column_names)}: pass --target-key")
