"""matplotlib figures without a display: panels, images, curves, atomic writing.

matplotlib is imported inside the functions and without pyplot, which keeps state and needs a display.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsfvit.utils.errors import UserError
from wsfvit.utils.files import check_can_be_made, make_folder, write_atomic

DPI = 150


def figure_path(name: str, flag: str = "--out") -> Path:
    """The path of a figure; raise a ``UserError`` if matplotlib has no such format or no folder can be created."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path, formats = Path(name), FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise UserError(f"{flag} {name}: the name must end in .png (or another of {', '.join(sorted(formats))})")
    check_can_be_made(path.parent)
    return path


def new_panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Any, np.ndarray]:
    """A figure of rows x columns panels, each ``width`` x ``height`` inches, and its axes, always a 2-D array."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure atomically in the format of the suffix and create the folder, or raise a ``UserError``."""
    make_folder(path.parent)
    write_atomic(path, lambda file: figure.savefig(file, format=path.suffix.lstrip(".").lower(), dpi=DPI))


def write_png(path: Path, image: np.ndarray | Image.Image) -> None:
    """Write an image, (H, W, 3) uint8 or of PIL, as PNG, atomically, or raise a ``UserError``."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    write_atomic(path, lambda file: image.save(file, "PNG"))


def show_image(axis: Any, image: np.ndarray) -> None:
    """Draw an image (H, W, 3), (H, W, 1) or (H, W) with values from 0 to 1, without ticks."""
    grey = image.ndim == 2 or image.shape[2] == 1
    axis.imshow(image.reshape(image.shape[:2]) if grey else image, cmap="gray", vmin=0, vmax=1)
    strip_ticks(axis)


def show_subband(axis: Any, subband: np.ndarray, name: str) -> None:
    """Draw a subband (h, w): zero white, positive red, negative blue, the range in the title.

    The strongest half percent of the values saturates, so that a few edges do not wash out all others.
    """
    limit = float(np.quantile(np.abs(subband), 0.995)) or 1.0
    axis.imshow(subband, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_title(f"{name}\n{subband.shape[0]}x{subband.shape[1]}, ±{limit:.2g}", fontsize=8)
    strip_ticks(axis)


def strip_ticks(axis: Any) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def style_curves(axis: Any, title: str, label: str) -> None:
    """Style a panel of curves over epochs."""
    axis.set(title=title, xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def draw_subbands(rows: Sequence[tuple[str, np.ndarray, np.ndarray]], names: Sequence[str], title: str = "") -> Any:
    """A figure with one row per image: the image, then its subbands.

    A row is a label, an image (H, W, C) from 0 to 1, and subbands (K, h, w), which have the K ``names``.
    """
    aspect = max(image.shape[0] / image.shape[1] for _, image, _ in rows)
    figure, panels = new_panels(len(rows), 1 + len(names), 1.75, 1.75 * aspect + 0.35)
    for (label, image, subbands), row in zip(rows, panels, strict=True):
        show_image(row[0], image)
        row[0].set_title("image", fontsize=8)
        row[0].set_ylabel(label, fontsize=8)
        for axis, subband, name in zip(row[1:], subbands, names, strict=True):
            show_subband(axis, subband, name)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
