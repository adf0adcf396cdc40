"""Send damaged images through the reading and the transforms.

    python -m tools.fuzz_images --count 2000 --out results/robustness/images.json

Each file must either give a finite tensor of the right shape or be refused in one line that names it. A decoder that
brings its process down is seen too, because a worker process does the reading.
"""

import io
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import build_parser, report_fuzzing
from wsfvit.data import Augmentation, SeededDataset, create_dataset
from wsfvit.data.bad_images import BadImage, TransformedDataset
from wsfvit.data.decoders import DECODERS
from wsfvit.data.transforms import build_train_transform
from wsfvit.utils.errors import run_main

GOOD = ("read", "refused")
CONFIG = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
AUGMENTATION = Augmentation(auto_augment="rand-m9-mstd0.5-inc1")


def make_bases() -> dict[str, bytes]:
    """One good picture in every format and pixel mode that data sets come in."""
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    picture = Image.fromarray(np.stack([x * 2, y * 3, (x * y) % 256], axis=2).astype(np.uint8))
    grey16 = Image.fromarray((x * y * 10).astype(np.uint16))
    encoded: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", picture, {}),
        ("JPEG progressive", picture, {"progressive": True}),
        ("JPEG grey", picture.convert("L"), {}),
        ("JPEG CMYK", picture.convert("CMYK"), {}),
        ("PNG", picture, {}),
        ("PNG palette", picture.convert("P"), {}),
        ("PNG alpha", picture.convert("RGBA"), {}),
        ("PNG 16 bits", grey16, {}),
        ("WEBP", picture, {}),
        ("GIF", picture.convert("P"), {}),
        ("BMP", picture, {}),
        ("TIFF", picture, {"compression": "tiff_lzw"}),
    ]
    bases = {}
    for name, image, options in encoded:
        buffer = io.BytesIO()
        image.save(buffer, name.split()[0], **options)
        bases[name] = buffer.getvalue()
    return bases


def mutate(kind: str, blob: bytes, rng: random.Random) -> bytes:
    """Damages a file: a few bits turned over, bytes of the header replaced, cut short, or a piece copied elsewhere."""
    changed = bytearray(blob)
    if kind == "bit flips":
        for _ in range(rng.randint(1, 16)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "header":
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(min(64, len(changed)))] = rng.randrange(256)
    elif kind == "truncation":
        del changed[rng.randrange(len(changed)) :]
    else:
        length = rng.randint(1, len(blob) // 4)
        source, target = (rng.randrange(len(blob) - length) for _ in range(2))
        changed[target : target + length] = changed[source : source + length]
    return bytes(changed)


MUTATIONS = ("bit flips", "header", "truncation", "splice")


class Outcomes(Dataset[tuple[str, str]]):
    """What becomes of each image: (``read``, ``refused`` or what else happened, message)."""

    def __init__(self, images: Any, names: list[str]) -> None:
        self.images, self.names = images, names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, str]:
        warnings.simplefilter("ignore")  # PIL's remarks on what it repaired
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
    kinds = [(rng.choice(list(bases)), rng.choice(MUTATIONS)) for _ in range(count)]
    (folder / "class").mkdir()
    names = [f"{index:06}.png" for index in range(count)]  # PIL goes by the content
    for name, (base, mutation) in zip(names, kinds, strict=True):
        (folder / "class" / name).write_bytes(mutate(mutation, bases[base], rng))
    transform = build_train_transform(CONFIG, AUGMENTATION, use_prefetcher=False)
    dataset = create_dataset("", str(folder), "train", decoder=decoder)
    images = SeededDataset(TransformedDataset(dataset, transform), seed)
    loader = DataLoader(Outcomes(images, names), batch_size=None, num_workers=1)
    for (base, mutation), (outcome, message) in zip(kinds, loader, strict=True):
        yield base, mutation, outcome, message


def main(argv: list[str] | None = None) -> None:
    parser = build_parser("fuzz_images", __doc__)
    parser.add_argument("--count", type=int, default=2000, help="files to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder", choices=DECODERS, default="pillow", help="what reads JPEG files")
    parser.add_argument("--out", metavar="FILE", help="write the counts as JSON")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        cases = list(fuzz_images(args.count, args.seed, Path(folder), args.decoder))
    bad = [
        f"{outcome}: {base}, {mutation}: {message}" for base, mutation, outcome, message in cases if outcome not in GOOD
    ]
    report_fuzzing(args, [{"format": base, "outcome": outcome} for base, _, outcome, _ in cases], bad)


if __name__ == "__main__":
    run_main(main)
