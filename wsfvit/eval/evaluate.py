"""Accuracy over a whole split."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from wsfvit.factory.data import Loader
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError
from wsfvit.utils.precision import autocast
from wsfvit.utils.progress import Progress


class Judge(Protocol):
    """Says which predictions are right."""

    def __call__(self, predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Judges a batch; called once for each, in the order of the loader.

        Args:
            predicted: Classes (B, k), the likeliest first.
            labels: The data's labels (B,).

        Returns:
            Which predictions are right (B, k), and which images count (B,), both bool.
        """


def judge_by_label(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The prediction that is the label is right, and every image counts."""
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
    """Measures a classifier over every image of ``loader``, on all processes of ``world`` together.

    Args:
        model: Maps images (B, C, H, W) to logits (B, K); put into eval mode here.
        loader: Batches of images and labels (B,).
        device: Where the model is.
        dtype: Mixed precision, or None.
        layout: Memory format of the images.
        title: Shown with the progress.
        interval: Batches between two progress lines.
        world: The processes that share the images, each with a loader of its own; None for this one alone.

    Returns:
        As ``to_figures``.

    Raises:
        UserError: there are no images.
    """
    world = world or World(device)
    sums, images_per_s = measure_share(model, loader, world, dtype, layout, title, interval)
    return to_figures(add_shares(sums, world)) | {"images_per_s": images_per_s}


# Not inference_mode: a model may keep what it computed here (masks, tables), and training could not use that then.
@torch.no_grad()
def measure_share(
    model: nn.Module,
    loader: Loader,
    world: World,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    title: str = "validate",
    interval: int = 50,
    judge: Judge = judge_by_label,
) -> tuple[torch.Tensor, float]:
    """Measures this process's share, without a word to the others; see ``evaluate`` for the arguments.

    Returns:
        The sums that ``to_figures`` reads, (5,) float64 on the CPU: loss, top-1 hits, top-5 hits, images judged and
        images; then the images per second of all processes.
    """
    model.eval()
    device, on_gpu = world.device, world.device.type == "cuda"
    precision = next(model.parameters()).dtype
    sums = torch.zeros(5, dtype=torch.float64)
    with Progress(title, len(loader), interval, shown=world.is_main) as progress:
        for images, labels in loader:
            images = images.to(device, precision, memory_format=layout)
            labels = labels.to(device)
            with autocast(device, dtype):
                logits = model(images)
            logits = logits.float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            right, counted = judge(logits.topk(min(5, logits.shape[1]), dim=1).indices, labels)
            batch = (loss, right[:, 0].sum(), right.any(1).sum(), counted.sum())
            sums[:4] += torch.stack([value.double() for value in batch]).cpu()
            sums[4] += len(labels)
            memory = {"GB": torch.cuda.max_memory_allocated(device) / 1e9} if on_gpu else {}
            progress.step(len(labels) * world.size, **memory)
        return sums, progress.per_second


def add_shares(sums: torch.Tensor, world: World) -> torch.Tensor:
    """The sum of what all processes measured; a process alone leaves it on the CPU, as not every device has float64."""
    return world.sum(sums.to(world.device)) if world.size > 1 else sums


def to_figures(sums: torch.Tensor) -> dict[str, float]:
    """Figures from the sums of ``measure_share``, added up over the processes.

    Returns:
        ``loss`` (mean cross-entropy), ``top1`` and ``top5`` in percent (with fewer than five classes, top5 is 100) and
        ``images``.

    Raises:
        UserError: there are no images, or none that count.
    """
    loss, top1, top5, judged, images = sums.tolist()
    if not images:
        raise UserError("the validation split has no images")
    if not judged:
        raise UserError("--real-labels has a label for none of the images")
    return {"loss": loss / images, "top1": 100 * top1 / judged, "top5": 100 * top5 / judged, "images": int(images)}
