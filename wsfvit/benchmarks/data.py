"""What it costs that augmentation depends on (seed, epoch, index): the share of the seeding in reading an image.

    python -m wsfvit.benchmarks.data --data IMAGES --out results/cpu/data.json

One process does what a worker does, image after image: seed, then decode, crop and augment. The two parts are timed
apart, in CPU time of this process, so that other load on the machine shows as little as possible.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from wsfvit.benchmarks.common import environment, markdown_table, write_results
from wsfvit.data import Augmentation, create_dataset, seed_all
from wsfvit.data.bad_images import TransformedDataset
from wsfvit.data.transforms import build_train_transform

SEED = 1


def cpu_seconds(fn: Callable[..., Any], *args: Any) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    fn(*args)
    return time.process_time() - start


def measure_reading(dataset: Any, rounds: int) -> list[tuple[float, float]]:
    """CPU seconds per image of each pass over the data: (seeding, reading)."""
    passes = []
    for epoch in range(-1, rounds):  # the first pass warms up
        seeding = reading = 0.0
        for index in range(len(dataset)):
            seeding += cpu_seconds(seed_all, SEED, epoch, index)
            reading += cpu_seconds(dataset.__getitem__, index)
        passes.append((seeding / len(dataset), reading / len(dataset)))
    return passes[1:]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m wsfvit.benchmarks.data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", metavar="DIR", help="image folder or .tar (default: generated pictures, not decoded)")
    parser.add_argument("--img-size", type=int, default=224, metavar="N")
    parser.add_argument("--aa", default="rand-m9-mstd0.5-inc1", metavar="POLICY", help="AutoAugment policy")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="passes over the data")
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    size = (3, args.img_size, args.img_size)
    config = {"input_size": size, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    images = create_dataset("" if args.data else "synthetic", args.data, "train")
    dataset = TransformedDataset(images, build_train_transform(config, Augmentation(auto_augment=args.aa)))
    passes = torch.tensor(measure_reading(dataset, args.rounds), dtype=torch.float64)
    seeding, reading = (passes * 1e3).median(0).values.tolist()
    shares = passes[:, 0] / passes[:, 1] * 100
    results = {
        "images": len(dataset),
        "seeding_ms_per_image": seeding,
        "reading_ms_per_image": reading,
        "seeding_percent": {"min": shares.min().item(), "median": shares.median().item(), "max": shares.max().item()},
    }
    rows = [["seeding", f"{seeding:.3f}"], ["reading and augmentation", f"{reading:.3f}"]]
    print(markdown_table(["part", "CPU ms per image"], rows))
    print(f"seeding costs {shares.median():.1f} % ({shares.min():.1f} to {shares.max():.1f} over {args.rounds} passes)")
    if args.out:
        write_results(args.out, {"environment": environment(), "settings": vars(args), "results": results})
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
