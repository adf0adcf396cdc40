"""Metrics: the published figures, scikit-image's SSIM, sums over batches and processes, NaN that shows."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsfvit.utils.errors import UserError
from wsfvit.video import metrics as metrics_module
from wsfvit.video.metrics import VideoMetrics, copy_last_frame, ssim

PUBLISHED = Path(__file__).parents[1] / "fixtures" / "video" / "video_metric_parity.json"


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def evaluate(prediction, future):
    metrics = VideoMetrics(prediction.shape[1], prediction.shape[2], prediction.shape[3:])
    metrics.update(prediction, future)
    return metrics


def test_published_figures():
    """The recipe and the figures stand in the file; they were computed by the published implementation."""
    expected = json.loads(PUBLISHED.read_text())["noise"]
    shape = (2, 10, 1, 64, 64)
    future = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).float() / 255
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    figures = evaluate(future + 0.05 * noise, future).compute()
    for name, key in {"mse": "mse", "mae": "mae", "psnr_uint8": "psnr", "psnr": "psnr_correct"}.items():
        assert figures[name] == pytest.approx(expected[key], rel=1e-6), name
    assert figures["ssim"] == pytest.approx(expected["ssim"], abs=1e-6)
    assert figures["mse_pixel"] == pytest.approx(expected["mse"] / 4096, rel=1e-6)
    assert figures["mae_pixel"] == pytest.approx(expected["mae"] / 4096, rel=1e-6)
    assert (figures["sequences"], figures["non_finite_frames"]) == (2, 0)


@pytest.mark.parametrize("kind", ["noise", "blurred", "bright", "black", "equal"])
@pytest.mark.parametrize("size", [(7, 7), (9, 34)])
def test_ssim_and_psnr_equal_scikit_image(kind, size, monkeypatch):
    skimage = pytest.importorskip("skimage.metrics")
    monkeypatch.setitem(metrics_module.CHUNK, "cpu", 4 * math.prod(size))  # a frame of three channels at a time
    future = rand(2, 3, 3, *size)
    blurred = F.avg_pool2d(future.flatten(0, 1), 3, 1, 1).unflatten(0, (2, 3))
    one = {
        "noise": (future + 0.1 * rand(*future.shape, seed=1)).clamp(0, 1),
        "blurred": blurred,
        "bright": 1 - blurred / 20,
        "black": torch.zeros_like(future),
        "equal": future,
    }[kind]
    other = 1 - future / 20 if kind == "bright" else future
    # In float64: scikit-image itself is off by up to 4e-7 in float32.
    frames = [pair.flatten(0, 1).double().numpy() for pair in (one, other)]
    expected = [
        skimage.structural_similarity(*pair, data_range=1.0, channel_axis=0) for pair in zip(*frames, strict=True)
    ]
    assert np.abs(ssim(one, other).flatten().numpy() - expected).max() < 1e-6
    if kind == "equal":
        figures = evaluate(one, other).compute()
        assert figures["psnr"] == figures["psnr_uint8"] == 100, "where scikit-image says infinite"
    else:
        expected = [skimage.peak_signal_noise_ratio(*pair, data_range=1.0) for pair in zip(*frames, strict=True)]
        assert evaluate(one, other).compute()["psnr"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_figures_by_their_definition():
    """Not clipped for MSE and MAE, clipped for PSNR; per frame and on average."""
    future = torch.zeros(2, 3, 1, 8, 10)
    prediction = torch.tensor([0.5, 2.0, -1.0]).view(1, 3, 1, 1, 1).expand_as(future)
    metrics = evaluate(prediction, future)
    per_frame = metrics.per_frame()
    assert per_frame["mse"] == [20, 320, 80] and per_frame["mae"] == [40, 160, 80]
    assert per_frame["mse_pixel"] == [0.25, 4, 1] and per_frame["mae_pixel"] == [0.5, 2, 1]
    assert per_frame["psnr"] == pytest.approx([-10 * math.log10(0.25), 0, 100])
    assert metrics.compute()["mse"] == 140


def test_uint8_psnr_wraps():
    """127 squared is 1 in eight bits: an error of half the range looks like one of a single step."""
    future = torch.zeros(1, 1, 1, 8, 8)
    figures = evaluate(future + 127.5 / 255, future).compute()
    assert figures["psnr_uint8"] == pytest.approx(20 * math.log10(255)) and figures["psnr"] < 7


def test_batches_and_processes_add_up():
    future, prediction = rand(7, 4, 1, 9, 8), rand(7, 4, 1, 9, 8, seed=1)
    whole = evaluate(prediction, future)
    parts = [evaluate(prediction[rank::3], future[rank::3]) for rank in range(3)]
    parts[0].update(prediction[:0], future[:0])
    sums = torch.stack([part.sums() for part in parts]).sum(0)
    assert parts[0].compute(sums) == pytest.approx(whole.compute(), rel=1e-12)
    assert parts[0].per_frame(sums)["ssim"] == pytest.approx(whole.per_frame()["ssim"], rel=1e-12)
    parts[0].sums().zero_()
    assert parts[0].compute()["sequences"] == 3, "sums() is a copy"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_show(value):
    future = rand(3, 2, 1, 8, 8)
    prediction = future.clone()
    prediction[1, 1, 0, 3, 3] = value
    metrics = evaluate(prediction, future)
    figures, per_frame = metrics.compute(), metrics.per_frame()
    assert figures.pop("non_finite_frames") == 1 and figures.pop("sequences") == 3
    assert all(math.isnan(figure) for figure in figures.values())
    assert all(not math.isnan(frames[0]) and math.isnan(frames[1]) for frames in per_frame.values())


def test_lower_precision_is_evaluated_in_float32():
    future = rand(2, 2, 1, 16, 16)
    prediction = (future + 0.1).bfloat16()
    assert evaluate(prediction, future).compute() == evaluate(prediction.float(), future).compute()


def test_copy_last_frame():
    frames = rand(2, 3, 1, 8, 8)
    copied = copy_last_frame(frames, 5)
    assert copied.shape == (2, 5, 1, 8, 8) and all(torch.equal(copied[:, t], frames[:, -1]) for t in range(5))


def test_what_cannot_be_evaluated():
    with pytest.raises(UserError, match="at least 7x7 pixels, not 6x9"):
        VideoMetrics(2, 1, (6, 9))
    metrics = VideoMetrics(2, 1, (8, 8))
    with pytest.raises(UserError, match="no sequences to evaluate"):
        metrics.compute()
    for shapes in (((1, 3, 1, 8, 8),) * 2, ((1, 2, 1, 8, 8), (2, 2, 1, 8, 8))):
        with pytest.raises(ValueError, match="must both be"):
            metrics.update(*map(torch.zeros, shapes))
