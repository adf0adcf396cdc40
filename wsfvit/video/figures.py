"""Figures of predictions: strips of frames, animations, and metrics over the predicted frames."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from wsfvit.utils.errors import UserError
from wsfvit.utils.figures import new_panels, save_figure, style_curves, write_png
from wsfvit.utils.files import write_atomic
from wsfvit.video.data.video_files import import_av, write_mp4

ANIMATIONS = (".gif", ".mp4")
# Frames are enlarged by an integer factor to about this height in pixels; larger ones keep their size.
HEIGHT = 96
GAP = 4
LABEL_WIDTH, LABEL_HEIGHT = 84, 18
MAX_COLUMNS = 10
WHITE, BLACK = 255, (0, 0, 0)


def draw_strip(frames: Tensor, prediction: Tensor, future: Tensor | None = None) -> np.ndarray:
    """Draw one sequence as rows of frames, input, truth, prediction and error: RGB image (height, width, 3) uint8.

    The error is prediction minus truth: white for none, red where the prediction is too bright, blue where too dark.
    Rows of more than ten frames are thinned to ten evenly spaced ones. Frames are numbered from the first input.

    Args:
        frames: Input (T_in, C, H, W) in [0, 1].
        prediction: (T_out, C, H, W), clipped to [0, 1].
        future: Truth (T_out, C, H, W) where it is known; without it there is no row of truth and none of errors.
    """
    rows = {"input": _to_rgb(frames), **_output_to_rgb(prediction, future)}
    height, width = rows["input"].shape[1:3]
    row_height, columns = LABEL_HEIGHT + height + GAP, min(max(map(len, rows.values())), MAX_COLUMNS)
    canvas = np.full((len(rows) * row_height, LABEL_WIDTH + columns * (width + GAP), 3), WHITE, np.uint8)
    texts = []
    for row, (label, images) in enumerate(rows.items()):
        top = row * row_height + LABEL_HEIGHT
        first = 1 if label == "input" else len(frames) + 1
        texts.append((GAP, top + height // 2 - LABEL_HEIGHT // 2, label))
        for column, index in enumerate(_spread(len(images))):
            left = LABEL_WIDTH + column * (width + GAP)
            canvas[top : top + height, left : left + width] = images[index]
            texts.append((left, top - LABEL_HEIGHT, str(first + index)))
    return _write_texts(canvas, texts)


def draw_animation(frames: Tensor, prediction: Tensor, future: Tensor | None = None) -> list[np.ndarray]:
    """Draw one sequence, as in ``draw_strip``, as an animation: input, then truth, prediction and error side by side.

    The result is T_in + T_out RGB images (height, width, 3) uint8 of one size.
    """
    inputs, outputs = _to_rgb(frames), _output_to_rgb(prediction, future)
    height, width = inputs.shape[1], max(inputs.shape[2], LABEL_WIDTH)
    drawn = []
    for time in range(len(frames) + len(prediction)):
        canvas = np.full((LABEL_HEIGHT + height + GAP, len(outputs) * (width + GAP) + GAP, 3), WHITE, np.uint8)
        texts = []
        is_input = time < len(frames)
        for column, (label, images) in enumerate(outputs.items()):
            left = GAP + column * (width + GAP)
            texts.append((left, 0, f"{'input' if is_input else label} {time + 1}"))
            if label == "error" and is_input:
                continue
            image = inputs[time] if is_input else images[time - len(frames)]
            canvas[LABEL_HEIGHT : LABEL_HEIGHT + height, left : left + image.shape[1]] = image
        drawn.append(_write_texts(canvas, texts))
    return drawn


def write_animation(path: Path, images: Sequence[np.ndarray], fps: float = 5) -> None:
    """Write RGB images (H, W, 3) uint8 of one size as .gif or, with PyAV, as .mp4, atomically.

    Raises:
        UserError: another suffix, PyAV is missing, or the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        write_mp4(path, images, fps)
    elif suffix == ".gif":
        first, *others = map(Image.fromarray, images)
        options = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "loop": 0}
        write_atomic(path, lambda file: first.save(file, "GIF", **options))
    else:
        raise UserError(f"'{path}': the name of an animation must end in {' or '.join(ANIMATIONS)}")


def check_animation(suffix: str) -> None:
    """Raise a ``UserError`` early if the package that writes such animations is missing."""
    if suffix == ".mp4":
        import_av()


def write_prediction(
    folder: Path, name: str, frames: Tensor, prediction: Tensor, future: Tensor | None = None, movie: str = ".gif"
) -> list[Path]:
    """Write one sequence, as in ``draw_strip``, as ``NAME.png`` and as an animation with the suffix ``movie``.

    Returns the two files.

    Raises:
        UserError: a file cannot be written; ``folder`` must exist.
    """
    strip, animation = folder / f"{name}.png", folder / f"{name}{movie}"
    write_png(strip, draw_strip(frames, prediction, future))
    write_animation(animation, draw_animation(frames, prediction, future))
    return [strip, animation]


def write_curves(path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]], first: int) -> None:
    """Plot MSE, SSIM and PSNR over the predicted frames, one line per predictor; see ``save_figure``.

    Args:
        path: The file; its suffix selects the format, e.g. .png or .svg.
        curves: Predictor name to the result of ``VideoMetrics.per_frame``.
        first: Number of the first predicted frame, counted from 1.
    """
    titles = {"mse": "MSE per frame (sum)", "ssim": "SSIM (range 1)", "psnr": "PSNR in dB"}
    figure, panels = new_panels(1, len(titles), 3.6, 2.8)
    for axis, (key, title) in zip(panels[0], titles.items(), strict=True):
        style_curves(axis, title, "")
        axis.set_xlabel("frame")
        for name, metrics in curves.items():
            axis.plot(range(first, first + len(metrics[key])), metrics[key], marker=".", label=name)
    panels[0][0].legend(frameon=False)
    save_figure(figure, path)


def _to_rgb(frames: Tensor) -> np.ndarray:
    """(T, C, H, W) in [0, 1] -> enlarged (T, h, w, 3) uint8; NaN becomes black."""
    pixels = frames.detach().float().nan_to_num(0).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return _enlarge(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))


def _output_to_rgb(prediction: Tensor, future: Tensor | None) -> dict[str, np.ndarray]:
    """Enlarged frames (T_out, h, w, 3) uint8 by label, in the order in which they are drawn."""
    predicted = {"prediction": _to_rgb(prediction)}
    if future is None:
        return predicted
    error = (prediction.detach().float().clamp(0, 1) - future.float()).mean(1).nan_to_num(0).cpu().numpy()
    away = np.round(255 * (1 - np.abs(error))).astype(np.uint8)
    full = np.full_like(away, WHITE)
    red, blue = np.stack([full, away, away], -1), np.stack([away, away, full], -1)
    coloured = np.where(error[..., None] > 0, red, blue)
    return {"truth": _to_rgb(future), **predicted, "error": _enlarge(coloured)}


def _enlarge(images: np.ndarray) -> np.ndarray:
    factor = max(1, round(HEIGHT / images.shape[1]))
    return images.repeat(factor, 1).repeat(factor, 2)


def _spread(length: int) -> list[int]:
    """At most ``MAX_COLUMNS`` evenly spaced indices below ``length``, including the first and the last."""
    indices: list[int] = np.linspace(0, length - 1, min(length, MAX_COLUMNS)).round().astype(int).tolist()
    return indices


def _write_texts(canvas: np.ndarray, texts: Sequence[tuple[int, int, str]]) -> np.ndarray:
    """Write black texts, each given with the left and top of its corner."""
    image = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for left, top, text in texts:
        draw.text((left, top), text, fill=BLACK, font=font)
    return np.array(image)
