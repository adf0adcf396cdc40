"""Other labels than a dataset's own: ImageNet's reassessed labels, and data with a subset of a model's classes."""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from wsfvit.data.labels import wrong_label
from wsfvit.utils.errors import UserError

_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})")


class RealLabels:
    """``LabelMatcher`` of ImageNet's reassessed labels (ReaL; Beyer et al., "Are we done with ImageNet?", 2020).

    A prediction is correct if it is among an image's labels; an image without labels does not count.

    Args:
        path: The published JSON file: one list of classes per validation image, in the order of their numbers.
        names: File names of the images in the order of the evaluation; the numbers in them select the labels.

    Raises:
        UserError: The file cannot be read or has another format, or an image has no number in its name.
    """

    def __init__(self, path: str, names: Sequence[str]) -> None:
        table = _read_table(path)
        self.answers: list[list[int]] = []
        self.position = 0
        for name in names:
            found = _VALIDATION_IMAGE.search(os.path.basename(name))
            if not found or not 1 <= int(found[1]) <= len(table):
                raise UserError(
                    f"--real-labels is for ImageNet's validation images; '{name}' is not one of its {len(table)}"
                )
            self.answers.append(table[int(found[1]) - 1])

    def __call__(self, predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Match the next images, see ``LabelMatcher``."""
        answers = self.answers[self.position : self.position + len(predicted)]
        self.position += len(predicted)
        pairs = zip(answers, predicted.tolist(), strict=True)
        correct = [[choice in answer for choice in row] for answer, row in pairs]
        counted = [bool(answer) for answer in answers]
        return torch.tensor(correct, device=labels.device), torch.tensor(counted, device=labels.device)


class SelectedClasses(nn.Module):
    """A classifier restricted to a subset of its classes.

    Args:
        model: Images (B, C, H, W) -> logits (B, K).
        classes: Which of the K, in the order of the labels.
    """

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("classes", torch.tensor(classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> logits (B, number of selected classes)."""
        return self.model(images)[:, self.classes]


def read_valid_labels(path: str, num_classes: int) -> list[int]:
    """Read a text file of class indices, one per line.

    Raises:
        UserError: It cannot be read, or holds anything but distinct classes of the model.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            classes = [int(line) for line in file if line.strip()]
    except (OSError, ValueError) as err:
        raise UserError(f"--valid-labels {path}: expected one class index per line ({err})") from err
    wrong = [index for index in classes if not 0 <= index < num_classes]
    if wrong or not classes or len(set(classes)) < len(classes):
        found = f"class {wrong[0]}" if wrong else "a class twice" if classes else "nothing"
        raise UserError(f"--valid-labels {path}: {found}, expected distinct classes from 0 to {num_classes - 1}")
    return classes


def file_names(dataset: Any, indices: Sequence[int]) -> list[str]:
    """File names of some of a dataset's images.

    Raises:
        UserError: The dataset has none.
    """
    if not callable(getattr(dataset, "filename", None)):
        raise UserError("--real-labels needs a dataset with file names: an image folder or a tar file")
    return [dataset.filename(index) for index in indices]


def _read_table(path: str) -> list[list[int]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            table = json.load(file)
    except (OSError, ValueError) as err:
        raise UserError(f"--real-labels {path} cannot be read: {err}") from err
    rows = table if isinstance(table, list) else [None]
    if not all(isinstance(row, list) and not any(map(wrong_label, row)) for row in rows):
        raise UserError(f"--real-labels {path} is not a JSON list of lists of classes, which are integers from 0")
    return table
