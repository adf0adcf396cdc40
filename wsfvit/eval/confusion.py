"""Per-class accuracy and confusion matrix of an evaluation, as CSV files or a figure."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wsfvit.eval.evaluate import match_labels
from wsfvit.utils.errors import UserError
from wsfvit.utils.figures import figure_path, new_panels, save_figure
from wsfvit.utils.files import output_file, write_text_atomic

MAX_CLASSES = 10_000  # counts of 800 MB


class Confusion:
    """``LabelMatcher`` of the data's labels that also counts labels against predicted classes.

    Attributes:
        counts: (K, K) int64 on the CPU: row the label, column the most probable class.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes > MAX_CLASSES:
            raise UserError(f"a confusion matrix of {num_classes} classes is too large: at most {MAX_CLASSES}")
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def __call__(self, predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Count and match one batch, see ``LabelMatcher``."""
        pairs = (labels * len(self.counts) + predicted[:, 0]).cpu()
        self.counts += torch.bincount(pairs, minlength=self.counts.numel()).view_as(self.counts)
        return match_labels(predicted, labels)


def check_confusion_files(names: Sequence[str]) -> None:
    """Raise a ``UserError`` early for a folder that does not exist, or a name that ends in no known format."""
    for name in names:
        output_file("--confusion-matrix", name)
        if not name.lower().endswith(".csv"):
            figure_path(name, "--confusion-matrix")


def write_confusion(counts: torch.Tensor, class_names: Sequence[str], files: Sequence[str]) -> None:
    """Write counts (K, K), see ``Confusion``, to each file: a table for .csv, else a figure.

    The table has a row per class: name, images, top1 in percent (empty without images), and the predicted classes.
    """
    for name in files:
        if not name.lower().endswith(".csv"):
            save_figure(draw_confusion(counts, class_names), Path(name))
            continue
        rows = []
        for label, row in enumerate(counts.tolist()):
            images = sum(row)
            top1 = f"{100 * row[label] / images:.2f}" if images else ""
            rows.append([class_names[label], images, top1, *row])
        text = io.StringIO()
        csv.writer(text).writerows([["class", "images", "top1", *class_names], *rows])
        write_text_atomic(name, text.getvalue())


def draw_confusion(counts: torch.Tensor, class_names: Sequence[str]) -> Any:
    """A figure of each label's shares, (K, K), with the per-class accuracy beside the names of up to 40 classes."""
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(12.0, 3 + 0.3 * len(counts))
    figure, panels = new_panels(1, 1, side, side)
    axis = panels[0, 0]
    image = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted class", ylabel="class (accuracy)", title=f"{int(counts.sum())} images")
    if len(counts) <= 40:
        accuracy = [f"{100 * value:.0f} %" for value in shares.diagonal().tolist()]
        places = range(len(counts))
        axis.set_xticks(places, class_names, rotation=90)
        axis.set_yticks(places, [f"{name} ({text})" for name, text in zip(class_names, accuracy, strict=True)])
    figure.colorbar(image, ax=axis, shrink=0.6, label="share of the class's images")
    return figure
