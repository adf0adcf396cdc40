"""Metrics of predicted frames, each with its scale, accumulated on the device batch by batch.

Each metric is the mean over sequences and predicted frames of what ``DEFINITIONS`` says, prediction and truth being in
[0, 1]. Published tables for Moving MNIST have ``mse`` and ``mae``, which grow with the frame. ``ssim`` (Wang et al.,
2004) is scikit-image's with ``data_range=1``: sample covariance, K1 0.01, K2 0.03; tables made with range 2 show higher
values. ``psnr`` is limited because one frame without error, which copying the last input does produce, would make the
mean infinite. ``psnr_uint8`` is only to compare with those tables: errors that wrap look random, and correct PSNR is
about 15 dB lower. A frame with a non-finite value makes all metrics that contain it NaN, and is counted in
``non_finite_frames``.
"""

import math

import torch
from torch import Tensor

from wsfvit.utils.errors import UserError

WINDOW = 7
C1, C2 = 0.01**2, 0.03**2
# Values per chunk of SSIM: on a CPU what fits into its cache, which is twice as fast as a whole batch.
CHUNK = {"cpu": 2**15, "cuda": 2**23}
MAX_PSNR = 100.0
SUMMED = ("mse", "mae", "ssim", "psnr", "psnr_uint8")
DEFINITIONS = {
    "mse": "mean over frames of the sum of squared errors over a frame's values in 0..1, not clipped",
    "mae": "likewise of absolute errors",
    "ssim": "structural similarity, data range 1, uniform 7x7 window, prediction clipped to 0..1",
    "psnr": "dB against a peak of 1, prediction clipped to 0..1, at most 100 for a frame",
    "psnr_uint8": "what published tables up to SimVPv2 call PSNR: its difference wraps at 256",
    "mse_pixel": "mse over the number of values of a frame",
    "mae_pixel": "mae over the number of values of a frame",
}


def copy_last_frame(frames: Tensor, length: int) -> Tensor:
    """Baseline that repeats the last input frame: (B, T_in, C, H, W) -> (B, length, C, H, W), a view."""
    return frames[:, -1:].expand(-1, length, -1, -1, -1)


def repeat_mean_frame(frames: Tensor, length: int) -> Tensor:
    """Baseline that repeats the mean of the input frames: a blur where something moves."""
    return frames.mean(1, keepdim=True).expand(-1, length, -1, -1, -1)


def predict_black(frames: Tensor, length: int) -> Tensor:
    """Baseline of zeros: on dark frames with few bright pixels often better by MSE than ``copy_last_frame``."""
    return torch.zeros_like(frames[:, :1]).expand(-1, length, -1, -1, -1)


class VideoMetrics:
    """Sums of the metrics over the batches of one process; the module's docstring defines them.

    Args:
        frames_out, channels, size: Predicted frames, and channels and (height, width) of each.
        device: Device of the sums; that of the batches, so that adding needs no synchronisation.

    Raises:
        UserError: frames smaller than SSIM's window.
    """

    def __init__(
        self, frames_out: int, channels: int, size: tuple[int, int], device: torch.device | str = "cpu"
    ) -> None:
        if min(size) < WINDOW:
            raise UserError(f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels, not {size[0]}x{size[1]}")
        self._shape = (frames_out, channels, *size)
        device = torch.device(device)
        # Apple's GPUs have no float64.
        device = torch.device("cpu") if device.type == "mps" else device
        # Per frame: the five sums, the number of non-finite frames, the number of sequences.
        self._sums = torch.zeros(frames_out, len(SUMMED) + 2, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, prediction: Tensor, future: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: (B, frames_out, C, H, W) floating.
            future: The truth, of the same shape, in [0, 1].

        Raises:
            ValueError: another shape.
        """
        if prediction.shape[1:] != self._shape or prediction.shape != future.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and truth {tuple(future.shape)} must both be (B, "
                f"{', '.join(map(str, self._shape))})"
            )
        if not len(prediction):
            return
        prediction, future = prediction.float(), future.float()
        finite = prediction.isfinite().flatten(2).all(-1)
        error = prediction - future
        clipped = prediction.clamp(0, 1)
        mse, mae = error.square().sum((-3, -2, -1)), error.abs().sum((-3, -2, -1))
        on_clipped = [metric(clipped, future) for metric in (ssim, _psnr, _psnr_uint8)]
        values = torch.stack([mse, mae, *on_clipped], dim=-1).masked_fill(~finite[..., None], math.nan)
        counts = torch.stack([~finite, torch.ones_like(finite)], dim=-1)
        batch = torch.cat([values, counts.to(values.dtype)], dim=-1)
        self._sums += batch.to(self._sums.device).double().sum(0)

    def sums(self) -> Tensor:
        """Copy of the sums, float64 (frames_out, 7), for ``compute(sums)`` after adding them over processes."""
        return self._sums.clone()

    def compute(self, sums: Tensor | None = None) -> dict[str, float]:
        """Metrics over all sequences and frames: those of ``DEFINITIONS``, and ``sequences``, ``non_finite_frames``.

        ``sums`` are ``sums()`` added over the processes (default: this process's own); none at all is a ``UserError``.
        """
        sums = self._sums if sums is None else sums
        frames = {name: sum(values) / len(values) for name, values in self.per_frame(sums).items()}
        return frames | {"sequences": int(sums[0, -1]), "non_finite_frames": int(sums[:, -2].sum())}

    def per_frame(self, sums: Tensor | None = None) -> dict[str, list[float]]:
        """The same metrics for each predicted frame, without the counts; see ``compute``."""
        means = (self._sums if sums is None else sums).cpu()
        if not means[0, -1]:
            raise UserError("there are no sequences to evaluate")
        means = means / means[:, -1:]
        metrics = {name: means[:, column].tolist() for column, name in enumerate(SUMMED)}
        values = math.prod(self._shape[1:])
        return metrics | {f"{name}_pixel": [sum_ / values for sum_ in metrics[name]] for name in ("mse", "mae")}


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of float32 frames (B, T, C, H, W) in [0, 1], the mean over pixels and channels.

    The result is (B, T), float64 where the device has it.
    """
    flat = [frames.flatten(0, 1) for frames in (one, other)]
    chunk = max(1, CHUNK.get(one.device.type, CHUNK["cuda"]) // flat[0][0].numel())
    parts = [_ssim_map(*pair).mean((-3, -2, -1)) for pair in zip(*(f.split(chunk) for f in flat), strict=True)]
    return torch.cat(parts).unflatten(0, one.shape[:2])


def _ssim_map(one: Tensor, other: Tensor) -> Tensor:
    """SSIM at each pixel whose window lies inside the frame, (N, C, H-6, W-6)."""
    # The differences of squares below lose up to 5e-5 of the result in float32; Apple's GPUs have nothing better.
    one, other = (one, other) if one.device.type == "mps" else (one.double(), other.double())
    mean_one, mean_other = _window_mean(one), _window_mean(other)
    product, squares = mean_one * mean_other, mean_one.square() + mean_other.square()
    sample = WINDOW**2 / (WINDOW**2 - 1)
    covariance = sample * (_window_mean(one * other) - product)
    variances = sample * (_window_mean(one.square() + other.square()) - squares)
    return (2 * product + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))


def _window_mean(x: Tensor) -> Tensor:
    """Mean over each 7x7 window: sums of 2 neighbours, then of 7; average pooling takes four times as long."""
    for dim in (-2, -1):
        size = x.shape[dim]
        two = x.narrow(dim, 0, size - 1) + x.narrow(dim, 1, size - 1)
        seven = two.narrow(dim, 0, size - 6) + two.narrow(dim, 2, size - 6)
        x = seven.add_(two.narrow(dim, 4, size - 6)).add_(x.narrow(dim, 6, size - 6))
    return x / WINDOW**2


def _psnr(one: Tensor, other: Tensor) -> Tensor:
    mean: Tensor = (one - other).square().mean((-3, -2, -1))
    return (-10 * mean.log10()).clamp(max=MAX_PSNR)


def _psnr_uint8(one: Tensor, other: Tensor) -> Tensor:
    """Wrapping PSNR (B, T) of frames (B, T, C, H, W); the caller handles NaN, which uint8 does not have."""
    difference = (one.nan_to_num() * 255).to(torch.uint8) - (other * 255).to(torch.uint8)
    mean = (difference * difference).float().mean((-3, -2, -1))
    return (20 * math.log10(255) - 10 * mean.log10()).clamp(max=MAX_PSNR)
