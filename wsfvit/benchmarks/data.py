"""What it costs that augmentation depends on (seed, epoch, index): reading with and without the seeding.

    python -m wsfvit.benchmarks.data --data IMAGES --out results/cpu/data.json

Both sides decode, crop and augment the same pixels: the plain one is seeded outside the clock. One process, no workers,
in turns; times are CPU times of this process, so that other load on the machine does not show.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from wsfvit.benchmarks.common import environment, markdown_table, write_results
from wsfvit.data import Augmentation, SeededDataset, create_dataset, seed_all
from wsfvit.data.bad_images import TransformedDataset
from wsfvit.data.transforms import build_train_transform

SEED = 1


def cpu_seconds(fn: Callable[..., Any], *args: Any) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    fn(*args)
    return time.process_time() - start


def measure_seeding(dataset: Any, batch_size: int, rounds: int) -> list[tuple[float, float]]:
    """CPU seconds per image of each batch, one pair for each batch of each pass: (without, with seeding)."""
    seeded = SeededDataset(dataset, SEED)
    batches = [batch.tolist() for batch in torch.arange(len(dataset)).split(batch_size)]

    def read_plain(epoch: int, indices: list[int]) -> float:
        total = 0.0
        for index in indices:
            seed_all(SEED, epoch, index)
            total += cpu_seconds(dataset.__getitem__, index)
        return total

    pairs = []
    for epoch in range(-1, rounds):  # the first pass warms up
        seeded.set_epoch(epoch)
        for number, indices in enumerate(batches):
            # The second of the two finds the files in the processor's caches, so they take turns in that as well.
            plain_first = (number + epoch) % 2
            plain = read_plain(epoch, indices) if plain_first else 0.0
            total = cpu_seconds(seeded.__getitems__, indices)
            plain = plain if plain_first else read_plain(epoch, indices)
            if epoch >= 0:
                pairs.append((plain / len(indices), total / len(indices)))
    return pairs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m wsfvit.benchmarks.data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", metavar="DIR", help="image folder or .tar (default: generated pictures, not decoded)")
    parser.add_argument("--img-size", type=int, default=224, metavar="N")
    parser.add_argument("--aa", default="rand-m9-mstd0.5-inc1", metavar="POLICY", help="AutoAugment policy")
    parser.add_argument("-b", "--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="passes over the data")
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    size = (3, args.img_size, args.img_size)
    config = {"input_size": size, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    images = create_dataset("" if args.data else "synthetic", args.data, "train")
    dataset = TransformedDataset(images, build_train_transform(config, Augmentation(auto_augment=args.aa)))
    pairs = torch.tensor(measure_seeding(dataset, args.batch_size, args.rounds), dtype=torch.float64)
    plain, seeded = (pairs * 1e3).median(0).values.tolist()
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    q25, median, q75 = ((pairs[:, 1] / pairs[:, 0] - 1) * 100).quantile(quartiles).tolist()
    results = {
        "images": len(dataset),
        "plain_ms_per_image": plain,
        "seeded_ms_per_image": seeded,
        "cost_percent": {"q25": q25, "median": median, "q75": q75},
    }
    rows = [["plain", f"{plain:.3f}", f"{1e3 / plain:.0f}"], ["seeded", f"{seeded:.3f}", f"{1e3 / seeded:.0f}"]]
    print(markdown_table(["reading", "CPU ms per image", "images/s per process"], rows))
    print(f"seeding costs {median:.1f} % (quartiles {q25:.1f} and {q75:.1f} of {len(pairs)} batches)")
    if args.out:
        write_results(args.out, {"environment": environment(), "settings": vars(args), "results": results})
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
