"""Draw figures of the docs: subbands of a digit, and the curves of the recorded trainings.

    python -m tools.docs_figures

Reads results/training, writes docs/subbands.png and docs/training.png in seconds. Needs mlxtend.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import ROOT, build_parser
from wsfvit.analysis.plot import read_run
from wsfvit.data.digits import Digits
from wsfvit.utils.errors import run_main
from wsfvit.utils.figures import draw_subbands, new_panels, save_figure, style_curves
from wsfvit.wavelets import haar_dwt2d, haar_swt2d


def draw_digit(path: Path) -> None:
    """A digit, its four undecimated Haar subbands (the stem's input) and its four decimated ones (of a dwt block)."""
    image = torch.from_numpy(Digits("test", in_chans=1).images[810].astype(np.float32) / 255)[None, None]
    pixels = image[0, 0].numpy()
    rows = [
        ("undecimated\n(stem)", pixels, haar_swt2d(image)[0, :, 0].numpy()),
        ("decimated\n(dwt block)", pixels, haar_dwt2d(image)[0, :, 0].numpy()),
    ]
    save_figure(draw_subbands(rows, ("cA", "cH", "cV", "cD")), path)


def draw_trainings(path: Path, folder: Path) -> None:
    """Top-1 over epochs of every recorded training, one panel per data set, with the linear classifier as a line."""
    datasets = sorted({file.stem.split("_")[0] for file in folder.glob("*.csv")} - {"linear"})
    with (folder / "linear.csv").open() as file:
        linear = {row["dataset"]: float(row["top1"]) for row in csv.DictReader(file)}
    figure, panels = new_panels(1, len(datasets), 4.4, 3.2)
    for panel, dataset in zip(panels[0], datasets, strict=True):
        for file_name in sorted(folder.glob(f"{dataset}_*.csv")):
            run = read_run(file_name, file_name.stem.split("_", 1)[1])
            panel.plot(run.epochs, run.columns["top1"], "o-", label=run.name)
        panel.axhline(linear[dataset], color="gray", linestyle="--", label="linear classifier")
        style_curves(panel, dataset, "top-1 (%)")
        panel.legend()
    save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> None:
    build_parser("tools.docs_figures", __doc__).parse_args(argv)
    docs = ROOT / "docs"
    draw_digit(docs / "subbands.png")
    draw_trainings(docs / "training.png", ROOT / "results" / "training")
    print(f"wrote {docs / 'subbands.png'} and {docs / 'training.png'}")


if __name__ == "__main__":
    run_main(main)
