"""Loss and accuracy of a classifier over a whole split, by the data's labels, by ReaL, or for a subset of classes."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from wsfvit.data.labels import wrong_label
from wsfvit.factory.data import Loader
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.finite import count_nonfinite, refuse_nonfinite
from wsfvit.utils.precision import autocast
from wsfvit.utils.progress import Progress

_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})")


# Matches one batch, called once for each in the order of the loader: from the predicted classes (B, k), most probable
# first, and the data's labels (B,) to which predictions are correct (B, k) and which images count (B,), both bool.
LabelMatcher = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def match_labels(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``LabelMatcher`` of the data's own labels: every image counts."""
    return predicted == labels[:, None], torch.ones_like(labels, dtype=torch.bool)


def evaluate(
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    title: str = "validate",
    interval: int = 50,
    world: World | None = None,
) -> dict[str, float]:
    """Evaluate a classifier on every image of ``loader``, over all processes of ``world``.

    Args:
        model: Maps images (B, C, H, W) to logits (B, K); put into eval mode here.
        loader: Batches of images and labels (B,).
        device: Device of the model.
        dtype: Autocast dtype, or None for full precision.
        layout: Memory format of the images.
        title: Title of the progress lines.
        interval: Batches between two progress lines.
        world: The processes that share the images, each with its own loader; None for this one only.

    Returns:
        The metrics of ``reduce_metrics``, and ``images_per_s``.

    Raises:
        UserError: There are no images, or outputs that are not finite.
    """
    world = world or World(device)
    sums, images_per_s = evaluate_local(model, loader, world, dtype, layout, title, interval)
    return reduce_metrics(sums, world) | {"images_per_s": images_per_s}


# Not inference_mode: a model may cache tensors here (masks, tables) that training could not use afterwards.
@torch.no_grad()
def evaluate_local(
    model: nn.Module,
    loader: Loader,
    world: World,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    title: str = "validate",
    interval: int = 50,
    matcher: LabelMatcher = match_labels,
) -> tuple[torch.Tensor, float]:
    """The part of ``evaluate`` that one process computes without communication; arguments as there.

    Returns:
        Sums for ``reduce_metrics``, (6,) float64 on the CPU: loss, top-1 hits, top-5 hits, images that count,
        images with outputs that are not finite, images; and the images per second of all processes.
    """
    model.eval()
    device, on_gpu = world.device, world.device.type == "cuda"
    precision = next(model.parameters()).dtype
    sums = torch.zeros(6, dtype=torch.float64)
    with Progress(title, len(loader), interval, shown=world.is_main) as progress:
        for images, labels in loader:
            images = images.to(device, precision, memory_format=layout)
            labels = labels.to(device)
            with autocast(device, dtype):
                logits = model(images)
            logits = logits.float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            correct, counted = matcher(logits.topk(min(5, logits.shape[1]), dim=1).indices, labels)
            batch = (loss, correct[:, 0].sum(), correct.any(1).sum(), counted.sum(), count_nonfinite(logits))
            sums[:5] += torch.stack([value.double() for value in batch]).cpu()
            sums[5] += len(labels)
            memory = {"GB": torch.cuda.max_memory_allocated(device) / 1e9} if on_gpu else {}
            progress.step(len(labels) * world.size, **memory)
        return sums, progress.per_second


def reduce_metrics(sums: torch.Tensor, world: World) -> dict[str, float]:
    """Metrics from the sums of ``evaluate_local`` in all processes.

    Returns:
        ``loss`` (mean cross-entropy), ``top1`` and ``top5`` in percent (with fewer than five classes, top5 is 100) and
        ``images``.

    Raises:
        UserError: There are no images, or none that count, or outputs that are not finite.
    """
    loss, top1, top5, counted, bad, images = world.sum(sums).tolist()
    if not images:
        raise UserError("the validation split has no images")
    if not counted:
        raise UserError("--real-labels has a label for none of the images")
    refuse_nonfinite(int(bad or not math.isfinite(loss)), int(images))
    return {"loss": loss / images, "top1": 100 * top1 / counted, "top5": 100 * top5 / counted, "images": int(images)}


class RealLabels:
    """``LabelMatcher`` of ImageNet's reassessed labels (ReaL; Beyer et al., "Are we done with ImageNet?", 2020).

    A prediction is correct if it is among an image's labels; an image without labels does not count.

    Args:
        path: The published JSON file: one list of classes per validation image, in the order of their numbers.
        dataset: With ``filename(index)``: the number in an image's name selects its labels.
        indices: The images, in the order of the evaluation.

    Raises:
        UserError: The file cannot be read or has another format, or an image has no name or no number in it.
    """

    def __init__(self, path: str, dataset: Any, indices: Iterable[int]) -> None:
        if not callable(getattr(dataset, "filename", None)):
            raise UserError("--real-labels needs a dataset with file names: an image folder or a tar file")
        try:
            with open(path, encoding="utf-8-sig") as file:
                table = json.load(file)
        except (OSError, ValueError) as err:
            raise UserError(f"--real-labels {path} cannot be read: {err}") from err
        rows = table if isinstance(table, list) else [None]
        if not all(isinstance(row, list) and not any(map(wrong_label, row)) for row in rows):
            raise UserError(f"--real-labels {path} is not a JSON list of lists of classes, which are integers from 0")
        self.answers: list[list[int]] = []
        self.position = 0
        for name in map(dataset.filename, indices):
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
    """A classifier, images (B, C, H, W) to logits (B, K), restricted to ``classes``, in the order of the labels."""

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("classes", torch.tensor(classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> logits (B, number of selected classes)."""
        return self.model(images)[:, self.classes]


def read_valid_labels(path: str, num_classes: int) -> list[int]:
    """Read class indices, one per line, or raise a ``UserError`` for anything but distinct classes of the model."""
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
