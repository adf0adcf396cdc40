"""Time the training loop against a bare loop on timm's loader, with the same data and model.

    python -m benchmarks.loop --out results/cpu/loop.json

The bare loop is a forward pass, a backward pass and an optimizer step per batch of ``timm.data.create_loader``; ours
has besides these a seed per image, a seed per batch, the check of the loss, the sums and the progress. Both run whole
epochs over the same JPEG files in turns, without workers, so that no cost hides beside the training. On a shared
machine the CPU time of the process is the better figure; both are given.

Prints images per second and the share that our loop loses; --out writes them as JSON. Takes about two minutes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import create_dataset, create_loader
from torch import nn

from benchmarks.common import add_out, build_parser, set_up_device, write_run
from benchmarks.timing import time_candidates
from wsfvit import data
from wsfvit.cli.train import parse_train_args
from wsfvit.data import Augmentation, LoaderOptions
from wsfvit.factory.model import check_model_name
from wsfvit.train.classify import Classification
from wsfvit.train.loop import StepConfig, train_one_epoch
from wsfvit.train.state import TrainState
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import run_main
from wsfvit.utils.tables import markdown_table

CLASSES = 10
CONFIG = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("benchmarks.loop", __doc__)
    parser.add_argument("--model", default="resnet18", help="timm model")
    parser.add_argument("--img-size", type=int, default=64, help="image size")
    parser.add_argument("--images", type=int, default=128, help="images of an epoch")
    parser.add_argument("-b", "--batch-size", type=int, default=16, help="batch size")
    parser.add_argument("-j", "--workers", type=int, default=0, help="dataloader workers of either loop")
    parser.add_argument("--device", default="cpu", help="device")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--warmup", type=int, default=1, help="epochs before the timing")
    parser.add_argument("--repeats", type=int, default=15, help="timed epochs of either loop")
    add_out(parser)
    return parser.parse_args(argv)


def write_images(folder: Path, count: int, size: int) -> None:
    """Writes ``count`` generated JPEG files of ``size`` pixels, one subfolder per class."""
    dataset: Any = data.create_dataset("synthetic", None, "train", num_samples=count, num_classes=CLASSES)
    for index in range(count):
        image, label = dataset[index]
        place = folder / str(label)
        place.mkdir(exist_ok=True)
        image.resize((size, size)).save(place / f"{index}.jpg")


def bare_epoch(args: argparse.Namespace, folder: Path, device: torch.device) -> Callable[[], None]:
    """An epoch of the bare loop, with a model of its own."""
    loader = create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, args.img_size, args.img_size),
        batch_size=args.batch_size,
        is_training=True,
        num_workers=args.workers,
        device=device,
        **CONFIG,
    )
    model, optimizer = build_model(args, device)

    def run() -> None:
        model.train()
        for images, labels in loader:
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def our_epoch(args: argparse.Namespace, folder: Path, device: torch.device) -> Callable[[], None]:
    """An epoch of ``train_one_epoch``, with a model of its own."""
    config = {"input_size": (3, args.img_size, args.img_size), **CONFIG}
    options = LoaderOptions(batch_size=args.batch_size, num_workers=args.workers, device=device)
    dataset = data.create_dataset("", str(folder), "train")
    loader = data.build_train_loader(dataset, config, options, Augmentation(interpolation="bilinear"))
    model, optimizer = build_model(args, device)
    state = TrainState(model, optimizer, None, torch.amp.GradScaler(device.type, enabled=False), None)
    task = Classification(parse_train_args(["--smoothing", "0"]), World(device))
    task.build_loss(CLASSES)
    cfg = StepConfig(world=task.world, task=task)

    def run() -> None:
        state.begin_epoch(state.epoch + 1)
        loader.set_position(state.epoch)
        train_one_epoch(state, loader, cfg)

    return run


def with_cpu_time(run: Callable[[], None], seconds: list[float]) -> Callable[[], None]:
    """``run``, which also appends the CPU seconds of this process to ``seconds``."""

    def timed() -> None:
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)

    return timed


def build_model(args: argparse.Namespace, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same weights each time, and SGD with momentum."""
    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=CLASSES).to(device)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_model_name(args.model)
    device = set_up_device(args.device, args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, args.images, args.img_size)
        epochs = {"bare": bare_epoch(args, folder, device), "ours": our_epoch(args, folder, device)}
        seconds: dict[str, list[float]] = {loop: [] for loop in epochs}
        loops = {loop: with_cpu_time(run, seconds[loop]) for loop, run in epochs.items()}
        timings = time_candidates(loops, args, device)
    images = args.images // args.batch_size * args.batch_size
    cpu = {loop: statistics.median(seconds[loop][-args.repeats :]) for loop in epochs}
    results: list[dict[str, Any]] = [
        {"loop": loop, "images_per_second": images / timing.median, "cpu_seconds": cpu[loop], **asdict(timing)}
        for loop, timing in timings.items()
    ]
    lost = {
        "of_images_per_second": 1 - timings["bare"].median / timings["ours"].median,
        "of_images_per_cpu_second": 1 - cpu["bare"] / cpu["ours"],
    }
    rows = [
        [loop, f"{images / timing.median:.1f}", f"{images / cpu[loop]:.1f}", *timing.cells()[:2]]
        for loop, timing in timings.items()
    ]
    print(markdown_table(["loop", "images/s", "images/CPU s", "ms per epoch", "20 to 80 %"], rows))
    by_clock, by_cpu = lost.values()
    print(f"\nours loses {by_clock:.1%} of the bare loop's images per second, {by_cpu:.1%} per CPU second")
    write_run(args, lost_share=lost, results=results)


if __name__ == "__main__":
    run_main(main)
