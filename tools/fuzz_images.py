"""Fuzz image reading and the transforms with damaged files.

    python -m tools.fuzz_images --count 2000 --out results/robustness/images.json

Each file must either give a finite tensor of the right shape or be refused in one line that names it. A decoder that
crashes its process is found too, because a dataloader worker does the reading.

Prints the counts by format and outcome, --out writes them as JSON; exit code 1 if a file did not end as it should.
Takes about ten seconds.
"""

import io
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import add_out, build_parser
from tools.fuzz_checkpoints import flip_bits, report, splice, truncate
from wsfvit.data import Augmentation, SeededDataset, create_dataset
from wsfvit.data.bad_images import BadImage, TransformedDataset
from wsfvit.data.decoders import DECODERS
from wsfvit.data.transforms import build_train_transform
from wsfvit.utils.errors import run_main

GOOD = ("read", "refused")
CONFIG = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
AUGMENTATION = Augmentation(auto_augment="rand-m9-mstd0.5-inc1")


def make_bases() -> dict[str, bytes]:
    """One intact image in every format and pixel mode that data sets come in."""
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    colour = Image.fromarray(np.stack([x * 2, y * 3, (x * y) % 256], axis=2).astype(np.uint8))
    grey16 = Image.fromarray((x * y * 10).astype(np.uint16))
    encoded: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", colour, {}),
        ("JPEG progressive", colour, {"progressive": True}),
        ("JPEG grey", colour.convert("L"), {}),
        ("JPEG CMYK", colour.convert("CMYK"), {}),
        ("PNG", colour, {}),
        ("PNG palette", colour.convert("P"), {}),
        ("PNG alpha", colour.convert("RGBA"), {}),
        ("PNG 16 bits", grey16, {}),
        ("WEBP", colour, {}),
        ("GIF", colour.convert("P"), {}),
        ("BMP", colour, {}),
        ("TIFF", colour, {"compression": "tiff_lzw"}),
    ]
    bases = {}
    for name, image, options in encoded:
        buffer = io.BytesIO()
        image.save(buffer, name.split()[0], **options)
        bases[name] = buffer.getvalue()
    return bases


def overwrite_header(blob: bytes, rng: random.Random) -> bytes:
    """One to four of the first 64 bytes replaced."""
    changed = bytearray(blob)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(min(64, len(changed)))] = rng.randrange(256)
    return bytes(changed)


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flips": partial(flip_bits, most=16),
    "header": overwrite_header,
    "truncation": truncate,
    "splice": splice,
}


class Outcomes(Dataset[tuple[str, str]]):
    """What becomes of each image: (``read``, ``refused`` or what else happened, message)."""

    def __init__(self, images: Any, names: list[str]) -> None:
        self.images, self.names = images, names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, str]:
        warnings.simplefilter("ignore")  # PIL's warnings about repaired files
        try:
            item = self.images[index]
        except Exception as err:
            return type(err).__name__, str(err)
        if isinstance(item, BadImage):
            named = self.names[index] in item.message and "\n" not in item.message
            return ("refused" if named else "refused without its name"), item.message
        image, _ = item
        right = image.shape == CONFIG["input_size"] and bool(torch.isfinite(image).all())
        return ("read" if right else "wrong tensor"), str(tuple(image.shape))


def fuzz_images(count: int, seed: int, folder: Path, decoder: str = "pillow") -> Iterator[tuple[str, str, str, str]]:
    """Yields (format, mutation, outcome, message) of ``count`` files; the same seed gives the same files."""
    rng, bases = random.Random(seed), make_bases()
    kinds = [(rng.choice(list(bases)), rng.choice(list(MUTATIONS))) for _ in range(count)]
    (folder / "class").mkdir()
    names = [f"{index:06}.png" for index in range(count)]  # PIL goes by the content
    for name, (base, mutation) in zip(names, kinds, strict=True):
        (folder / "class" / name).write_bytes(MUTATIONS[mutation](bases[base], rng))
    transform = build_train_transform(CONFIG, AUGMENTATION, use_prefetcher=False)
    dataset = create_dataset("", str(folder), "train", decoder=decoder)
    images = SeededDataset(TransformedDataset(dataset, transform), seed)
    loader = DataLoader(Outcomes(images, names), batch_size=None, num_workers=1)
    for (base, mutation), (outcome, message) in zip(kinds, loader, strict=True):
        yield base, mutation, outcome, message


def main(argv: list[str] | None = None) -> None:
    parser = build_parser("tools.fuzz_images", __doc__)
    parser.add_argument("--count", type=int, default=2000, help="files to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder", choices=DECODERS, default="pillow", help="what reads JPEG files")
    add_out(parser)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        cases = list(fuzz_images(args.count, args.seed, Path(folder), args.decoder))
    bad = [
        f"{outcome}: {base}, {mutation}: {message}" for base, mutation, outcome, message in cases if outcome not in GOOD
    ]
    report(args, [{"format": base, "outcome": outcome} for base, _, outcome, _ in cases], bad)


if __name__ == "__main__":
    run_main(main)
