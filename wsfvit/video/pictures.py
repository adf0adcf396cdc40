"""Pictures of predictions: strips of frames, animations, and curves over the predicted frames."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from wsfvit.utils.errors import UserError
from wsfvit.utils.figures import new_panels, save_figure, style_curves
from wsfvit.utils.files import write_atomic
from wsfvit.video.data.video_files import import_av, write_mp4

ANIMATIONS = (".gif", ".mp4")
# Frames are enlarged by a whole factor to about this height in pixels; larger ones stay as they are.
HEIGHT = 96
GAP = 4
LABEL_WIDTH, LABEL_HEIGHT = 84, 18
MAX_COLUMNS = 10
WHITE, BLACK = 255, (0, 0, 0)


def draw_strip(frames: Tensor, prediction: Tensor, future: Tensor | None = None) -> np.ndarray:
    """Draws one sequence as rows of frames: input, truth, prediction and error.

    The error is prediction less truth: white for none, red where the prediction is too bright, blue where too dark. Of
    more than ten frames in a row, ten evenly spaced ones are shown; the number over each counts from the first input.

    Args:
        frames: Input (T_in, C, H, W) in [0, 1].
        prediction: (T_out, C, H, W); shown clipped to [0, 1].
        future: Truth (T_out, C, H, W), or None where there is none.

    Returns:
        RGB picture (height, width, 3) uint8.
    """
    start = len(frames)
    rows = [("input", _to_rgb(frames), 0)]
    if future is not None:
        rows.append(("truth", _to_rgb(future), start))
    rows.append(("prediction", _to_rgb(prediction), start))
    if future is not None:
        rows.append(("error", _error_to_rgb(prediction, future), start))
    shown = [_spread(len(images)) for _, images, _ in rows]
    height, width = rows[0][1].shape[1:3]
    columns = max(map(len, shown))
    canvas = np.full(
        (len(rows) * (LABEL_HEIGHT + height + GAP), LABEL_WIDTH + columns * (width + GAP), 3), WHITE, np.uint8
    )
    texts = []
    for number, ((label, images, first), places) in enumerate(zip(rows, shown, strict=True)):
        top = number * (LABEL_HEIGHT + height + GAP) + LABEL_HEIGHT
        texts.append((GAP, top + height // 2 - LABEL_HEIGHT // 2, label))
        for column, place in enumerate(places):
            left = LABEL_WIDTH + column * (width + GAP)
            canvas[top : top + height, left : left + width] = images[place]
            texts.append((left, top - LABEL_HEIGHT, str(first + place + 1)))
    return _write_texts(canvas, texts)


def draw_animation(frames: Tensor, prediction: Tensor, future: Tensor | None = None) -> list[np.ndarray]:
    """Draws one sequence as the pictures of an animation: the input, then truth, prediction and error side by side.

    Args:
        frames: As for ``draw_strip``.
        prediction: As for ``draw_strip``.
        future: As for ``draw_strip``.

    Returns:
        T_in + T_out RGB pictures (height, width, 3) uint8 of one size.
    """
    parts = {"prediction": _to_rgb(prediction)}
    if future is not None:
        parts = {"truth": _to_rgb(future)} | parts | {"error": _error_to_rgb(prediction, future)}
    inputs = _to_rgb(frames)
    height, width = inputs.shape[1:3]
    width = max(width, LABEL_WIDTH)
    pictures = []
    for time in range(len(frames) + len(prediction)):
        canvas = np.full((LABEL_HEIGHT + height + GAP, len(parts) * (width + GAP) + GAP, 3), WHITE, np.uint8)
        texts = []
        for column, (label, images) in enumerate(parts.items()):
            left = GAP + column * (width + GAP)
            is_input = time < len(frames)
            texts.append((left, 0, f"input {time + 1}" if is_input else f"{label} {time + 1}"))
            if label == "error" and is_input:
                continue
            image = inputs[time] if is_input else images[time - len(frames)]
            canvas[LABEL_HEIGHT : LABEL_HEIGHT + height, left : left + image.shape[1]] = image
        pictures.append(_write_texts(canvas, texts))
    return pictures


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes an RGB picture (H, W, 3) uint8 as PNG, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    from PIL import Image

    write_atomic(path, lambda file: Image.fromarray(picture).save(file, "PNG"))


def write_animation(path: Path, pictures: Sequence[np.ndarray], fps: float = 5) -> None:
    """Writes RGB pictures (H, W, 3) uint8 of one size as .gif, or as .mp4 where PyAV is installed.

    Args:
        path: The file; its suffix chooses.
        pictures: The pictures in order.
        fps: Pictures per second.

    Raises:
        UserError: another suffix, PyAV is missing, or the file cannot be written.
    """
    from PIL import Image

    suffix = path.suffix.lower()
    if suffix == ".mp4":
        write_mp4(path, pictures, fps)
    elif suffix == ".gif":
        first, *others = [Image.fromarray(picture) for picture in pictures]
        options = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "loop": 0}
        write_atomic(path, lambda file: first.save(file, "GIF", **options))
    else:
        raise UserError(f"'{path}': the name of an animation must end in {' or '.join(ANIMATIONS)}")


def check_animation(suffix: str) -> None:
    """Checks that animations with that suffix can be written, before anything long begins.

    Raises:
        UserError: the package for it is not installed.
    """
    if suffix == ".mp4":
        import_av()


def write_prediction(
    folder: Path, name: str, frames: Tensor, prediction: Tensor, future: Tensor | None = None, movie: str = ".gif"
) -> list[Path]:
    """Writes one sequence as a strip, ``NAME.png``, and as an animation, ``NAME.gif`` or ``NAME.mp4``.

    Args:
        folder: Must exist.
        name: The files' name.
        frames: As for ``draw_strip``.
        prediction: As for ``draw_strip``.
        future: As for ``draw_strip``.
        movie: Suffix of the animation.

    Returns:
        The files.

    Raises:
        UserError: a file cannot be written.
    """
    strip, animation = folder / f"{name}.png", folder / f"{name}{movie}"
    write_png(strip, draw_strip(frames, prediction, future))
    write_animation(animation, draw_animation(frames, prediction, future))
    return [strip, animation]


def write_curves(path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]], first: int) -> None:
    """Draws MSE, SSIM and PSNR over the predicted frames, a line for each of several predictors.

    Args:
        path: The file; its suffix chooses the format, e.g. .png or .svg.
        curves: Predictor's name to what ``VideoMetrics.per_frame`` returns.
        first: Number of the first predicted frame, counted from 1.

    Raises:
        UserError: the file cannot be written.
    """
    figure, panels = new_panels(1, 3, 3.6, 2.8)
    for axis, (key, title) in zip(
        panels[0], {"mse": "MSE per frame (sum)", "ssim": "SSIM (range 1)", "psnr": "PSNR in dB"}.items(), strict=True
    ):
        style_curves(axis, title, "")
        axis.set_xlabel("frame")
        for name, figures in curves.items():
            axis.plot(range(first, first + len(figures[key])), figures[key], marker=".", label=name)
    panels[0][0].legend(frameon=False)
    save_figure(figure, path)


def _to_rgb(frames: Tensor) -> np.ndarray:
    """(T, C, H, W) in [0, 1] to (T, h, w, 3) uint8, enlarged; NaN becomes black."""
    pixels = frames.detach().float().nan_to_num(0).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return _enlarge(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))


def _error_to_rgb(prediction: Tensor, future: Tensor) -> np.ndarray:
    error = (prediction.detach().float().clamp(0, 1) - future.float()).mean(1).nan_to_num(0).cpu().numpy()
    away = np.round(255 * (1 - np.abs(error))).astype(np.uint8)
    full = np.full_like(away, WHITE)
    red, blue = np.stack([full, away, away], -1), np.stack([away, away, full], -1)
    return _enlarge(np.where(error[..., None] > 0, red, blue))


def _enlarge(images: np.ndarray) -> np.ndarray:
    factor = max(1, round(HEIGHT / images.shape[1]))
    return images.repeat(factor, 1).repeat(factor, 2)


def _spread(length: int) -> list[int]:
    """At most ``MAX_COLUMNS`` evenly spaced numbers below ``length``, the first and the last among them."""
    places: list[int] = np.linspace(0, length - 1, min(length, MAX_COLUMNS)).round().astype(int).tolist()
    return places


def _write_texts(canvas: np.ndarray, texts: Sequence[tuple[int, int, str]]) -> np.ndarray:
    """The picture with black texts, each with its left upper corner."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for left, top, text in texts:
        draw.text((left, top), text, fill=BLACK, font=font)
    return np.array(image)
