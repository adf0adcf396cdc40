"""Time reading and augmenting images on one CPU core, part by part.

    python -m benchmarks.data --images IMAGES --sides 0 500 1024 --out results/cpu/loader.json
    python -m benchmarks.data --gpu-speed 2000

One process does the work of a dataloader worker, image after image: seed, read the file, decode, crop and resize,
augment. Each part is timed in CPU time of this process, so that other load on the machine shows little; then a real
loader is timed the same way, collating included. Random erasing, mixup and normalisation run on the device.
A GPU that trains N images/s needs N / (images per CPU second) cores.

Prints CPU milliseconds by part and case, --out writes them as JSON. Takes about two minutes per size of the images.
"""

import argparse
import gc
import io
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.common import add_out, build_parser, write_run
from benchmarks.photographs import generate_jpegs, read_jpegs, resize_jpegs, write_source
from wsfvit.data import Augmentation, LoaderOptions, build_train_loader, create_dataset, seed_all
from wsfvit.data.decoders import DECODERS, decode_image
from wsfvit.data.transforms import build_eval_transform, build_train_transform
from wsfvit.utils.errors import run_main
from wsfvit.utils.tables import markdown_table

SEED = 1
SOURCES = ("folder", "tar", "parquet")
PARTS = {
    "RandomResizedCrop": "crop and resize",
    "Resize": "crop and resize",
    "CenterCrop": "crop and resize",
    "RandomHorizontalFlip": "flip",
    "RandAugment": "RandAugment",
    "MaybePILToTensor": "to tensor",
}
COLUMNS = ("seed", "read", "decode", *dict.fromkeys(PARTS.values()))


@dataclass(frozen=True)
class Case:
    """What is timed: photographs of one size in one kind of file, by one decoder, with ``recipe`` (the augmentation of
    a training), ``evaluation`` or ``decode`` (no transform)."""

    longer_side: int
    source: str
    decoder: str
    transform: str


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("benchmarks.data", __doc__)
    parser.add_argument("--images", metavar="PATH", help="image folder or .tar (default: generated photographs)")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="photographs of them")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[500], metavar="N", help="longer sides, 0: unchanged (default: 500)"
    )
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG files that are resized")
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES, help="default: all")
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS), choices=DECODERS, help="default: all")
    parser.add_argument("--img-size", type=int, default=224, metavar="N", help="side of what the model gets")
    parser.add_argument(
        "--aa", default="rand-m9-mstd0.5-inc1", metavar="POLICY", help="default: that of the ImageNet recipes"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="passes over the photographs")
    parser.add_argument("-j", "--workers", type=int, default=2, help="of the real loader")
    parser.add_argument("--gpu-speed", type=float, metavar="N", help="images/s of a GPU: print the cores that feed it")
    add_out(parser)
    return parser.parse_args(argv)


def plan(args: argparse.Namespace) -> list[Case]:
    """Every source by the first decoder, and every decoder and transform from the first source."""
    cases: dict[Case, None] = {}  # a set that keeps the order
    for side in args.sides:
        cases |= {Case(side, source, args.decoders[0], "recipe"): None for source in args.sources}
        cases |= {Case(side, args.sources[0], decoder, "recipe"): None for decoder in args.decoders}
        cases |= {Case(side, args.sources[0], decoder, "decode"): None for decoder in args.decoders}
        cases |= {Case(side, args.sources[0], "pillow", "evaluation"): None}
    return list(cases)


def data_config(img_size: int) -> dict[str, Any]:
    size = (3, img_size, img_size)
    return {"input_size": size, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}


def build_steps(transform: str, args: argparse.Namespace) -> list[Any]:
    """The transforms of a case in their order."""
    config = data_config(args.img_size)
    if transform == "decode":
        return []
    if transform == "evaluation":
        composed: Any = build_eval_transform(config | {"interpolation": "bicubic", "crop_pct": 0.95})
    else:
        composed = build_train_transform(config, Augmentation(auto_augment=args.aa))
    return list(composed.transforms)


def load_image(dataset: Any, index: int, epoch: int, steps: list[Any], seconds: Counter[str]) -> Any:
    """Load one image as a worker does; adds the CPU seconds of each part to ``seconds``."""
    last = time.process_time()

    def lap(part: str) -> None:
        nonlocal last
        now = time.process_time()
        seconds[part] += now - last  # type: ignore[assignment]
        last = now

    seed_all(SEED, epoch, index)
    lap("seed")
    file, *_ = dataset.reader[index]
    with file:
        encoded = file.read()
    lap("read")
    image = decode_image(io.BytesIO(encoded), dataset.input_img_mode, dataset.decoder)
    lap("decode")
    for step in steps:
        image = step(image)
        lap(PARTS.get(type(step).__name__, type(step).__name__))
    return image


def measure_parts(datasets: dict[Case, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per case: CPU milliseconds per image, of each part and in all (medians over the rounds)."""
    steps = {case: build_steps(case.transform, args) for case in datasets}
    rounds: dict[Case, list[Counter[str]]] = {case: [] for case in datasets}
    for epoch in range(-1, args.rounds):  # the first pass warms up
        for case, dataset in datasets.items():  # in turns: a change of the clock rate hits all of them
            seconds: Counter[str] = Counter()
            for index in range(len(dataset)):
                load_image(dataset, index, epoch, steps[case], seconds)
            rounds[case].append(seconds)
    records = []
    for case, dataset in datasets.items():
        timed = rounds[case][1:]
        totals = [sum(seconds.values()) * 1e3 / len(dataset) for seconds in timed]
        median = statistics.median(totals)
        record = {"cpu_ms_per_image": median, "cpu_ms_min_max": [min(totals), max(totals)]}
        parts = {part: statistics.median(s[part] * 1e3 / len(dataset) for s in timed) for part in timed[0]}
        records.append(asdict(case) | record | {"images_per_cpu_second": 1e3 / median, "parts_ms": parts})
    return records


def measure_loader(dataset: Any, args: argparse.Namespace) -> float:
    """Images per CPU second of the workers of a real training loader, their start and the collating included."""
    options = LoaderOptions(batch_size=min(len(dataset), 16), num_workers=args.workers)
    loader: Any = build_train_loader(
        dataset, data_config(args.img_size), options, Augmentation(auto_augment=args.aa), seed=SEED
    )
    before, images = os.times(), 0
    for epoch in range(args.rounds):
        loader.set_position(epoch)
        images += sum(len(labels) for _, labels in loader)
    del loader  # ends the workers: only then is their time known
    gc.collect()
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return images / max(spent, 1 / os.sysconf("SC_CLK_TCK"))  # at least the clock's resolution


def print_tables(records: list[dict[str, Any]]) -> None:
    """Print the cost of each case and its parts."""
    rows = []
    for record in records:
        side = str(record["longer_side"] or "unchanged")
        parts = [f"{record['parts_ms'][part]:.2f}" if part in record["parts_ms"] else "" for part in COLUMNS]
        name = " ".join((side, record["source"], record["decoder"], record["transform"]))
        rows.append([name, *parts, f"{record['cpu_ms_per_image']:.2f}", f"{record['images_per_cpu_second']:.0f}"])
    print(markdown_table(["CPU ms per image", *COLUMNS, "all", "images per CPU s"], rows))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    photographs = read_jpegs(args.images, args.count) if args.images else generate_jpegs(args.count)
    with tempfile.TemporaryDirectory() as root:
        datasets, kilobytes = {}, {}
        places: dict[Path, tuple[str, str]] = {}
        for case in plan(args):
            folder = Path(root, str(case.longer_side), case.source)
            if folder not in places:
                folder.mkdir(parents=True)
                blobs = resize_jpegs(photographs, case.longer_side, args.quality)
                kilobytes[case.longer_side] = sum(map(len, blobs)) / len(blobs) / 1e3
                places[folder] = write_source(case.source, folder, blobs)
            name, path = places[folder]
            datasets[case] = create_dataset(name, path, "train", decoder=case.decoder)
        records = measure_parts(datasets, args)
        print_tables(records)
        workers = {
            decoder: measure_loader(datasets[Case(args.sides[0], args.sources[0], decoder, "recipe")], args)
            for decoder in args.decoders
        }
    for decoder, speed in workers.items():
        print(f"loader with {args.workers} workers, {decoder}: {speed:.0f} images per CPU second")
        if args.gpu_speed:
            print(f"  a GPU at {args.gpu_speed:g} images/s needs {math.ceil(args.gpu_speed / speed)} cores like these")
    write_run(
        args,
        images=os.path.basename(args.images) if args.images else "generated, amplitude 1/f",
        kilobytes_per_image=kilobytes,
        loader_images_per_cpu_second=workers,
        results=records,
    )


if __name__ == "__main__":
    run_main(main)
