"""Curves of several training runs in one figure."""

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsfvit.utils.errors import UserError
from wsfvit.utils.figures import figure_path, new_panels, save_figure, style_curves

# Panel title, axis label, and the columns that hold it: ours, then timm's.
PANELS = (
    ("training loss", "loss", ("train_loss",)),
    ("validation loss", "loss", ("val_loss", "eval_loss")),
    ("validation top-1", "top-1 (%)", ("top1", "eval_top1")),
    ("validation box AP", "AP", ("bbox_AP",)),
    ("validation mask AP", "AP", ("segm_AP",)),
    ("validation box AP50", "AP50", ("bbox_AP50",)),
    ("validation mask AP50", "AP50", ("segm_AP50",)),
    ("learning rate", "learning rate", ("lr",)),
)


@dataclass(frozen=True)
class Run:
    """One training run: its name, its epochs counted from 0, and its columns, NaN for cells without a number."""

    name: str
    epochs: list[float]
    columns: dict[str, list[float]]

    def values(self, names: Sequence[str]) -> list[float] | None:
        """The first of the columns ``names`` that the run has and that holds a number."""
        found = (self.columns[name] for name in names if name in self.columns)
        return next((column for column in found if not all(map(math.isnan, column))), None)


def run_plot(args: argparse.Namespace) -> list[Run]:
    """Run the plot command: draw the curves and print each run's best top-1 or box AP, or raise a ``UserError``."""
    out = figure_path(args.out)
    runs, refused = [], []
    files = list(dict.fromkeys(file for name in args.runs for file in find_tables(Path(name))))
    for file, name in zip(files, name_runs(files), strict=True):
        try:
            runs.append(read_run(file, name))
        except UserError as err:
            refused.append(str(err))
    if not runs:
        raise UserError("; ".join(refused))
    for reason in refused:
        print(f"skipped: {reason}")
    for run in runs:
        print(_describe(run))
    save_figure(draw_curves(runs), out)
    print(f"figure: {out}")
    return runs


def find_tables(path: Path) -> list[Path]:
    """The table of a run folder, those of the run folders or csv files in a folder, or the file itself.

    Raises:
        UserError: There is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"'{path}' does not exist: name a run folder or a csv file")
    found = [path / "summary.csv"] if (path / "summary.csv").is_file() else sorted(path.glob("*/summary.csv"))
    found = found or sorted(path.glob("*.csv"))
    if not found:
        raise UserError(f"'{path}' holds no summary.csv, and neither do the folders in it")
    return found


def name_runs(files: Sequence[Path]) -> list[str]:
    """A short unique name for each table: its folder's for a summary.csv, else its own, with parents as needed."""
    paths = [file.resolve().parent if file.name == "summary.csv" else file.resolve().with_suffix("") for file in files]
    names = [path.name for path in paths]
    for depth in range(2, 1 + max(len(path.parts) for path in paths)):
        clashing = {name for name in names if names.count(name) > 1}
        names = ["/".join(p.parts[-depth:]) if n in clashing else n for p, n in zip(paths, names, strict=True)]
    return names


def read_run(file: Path, name: str) -> Run:
    """Read a table with a header and a column ``epoch`` counted from 0; raise a ``UserError`` for any other file."""
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise UserError(f"'{file}' cannot be read as a table: {err}") from err
    if not rows or "epoch" not in rows[0]:
        raise UserError(f"'{file}' is not the table of a run: it has no " + ("'epoch' column" if rows else "rows"))
    columns = {key: [_number(row.get(key)) for row in rows] for key in rows[0] if key}
    return Run(name, columns["epoch"], columns)


def draw_curves(runs: Sequence[Run]) -> Any:
    """A figure with a panel for each quantity and all runs that have it; raise a ``UserError`` where no run has any."""
    panels = [panel for panel in PANELS if any(run.values(panel[2]) for run in runs)]
    if not panels:
        raise UserError("none of the tables has a column to draw: " + ", ".join(panel[2][0] for panel in PANELS))
    columns = min(2, len(panels))
    figure, axes = new_panels(-(-len(panels) // columns), columns, 4.2, 2.8)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    lines: dict[str, Any] = {}
    for axis, (title, label, names) in zip(axes.flat, panels, strict=False):
        for index, run in enumerate(runs):
            values = run.values(names)
            if values is not None:
                # Ten colours, then the same with dashes; points for runs of few epochs.
                style = {"color": f"C{index % 10}", "linestyle": "-" if index < 10 else "--"}
                # Points also where there are gaps between epochs.
                numbers = sum(not math.isnan(value) for value in values)
                style["marker"] = "o" if numbers <= 20 or 2 * numbers <= len(values) + 1 else ""
                # The first is the widest, so that equal curves stay visible.
                width = 1.5 * (len(runs) - index) if len(runs) <= 3 else 1.5
                lines[run.name] = axis.plot(run.epochs, values, markersize=2 * width, linewidth=width, **style)[0]
        style_curves(axis, title, label)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=min(len(lines), 2), frameon=False)
    return figure


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _describe(run: Run) -> str:
    for text, names in (("best top-1 {:.2f} %", ("top1", "eval_top1")), ("best box AP {:.3f}", ("bbox_AP",))):
        pairs = zip(run.values(names) or [], run.epochs, strict=False)
        known = [pair for pair in pairs if not math.isnan(pair[0])]
        if known:
            value, epoch = max(known)
            return f"{run.name}: {len(run.epochs)} epochs, {text.format(value)} (epoch {epoch:.0f})"
    return f"{run.name}: {len(run.epochs)} epochs, no top-1"
