"""The baseline must be the published computation: its keys and shapes, its numbers, its gradients."""

from typing import Any

import numpy as np
import pytest
import pywt
import torch
from parity import (
    fill_by_key,
    grad_norm_errors,
    load_fixture,
    load_grad_norms,
    load_manifest,
    make_input,
    output_errors,
    run_with_features,
)

from benchmarks.baseline import BASELINE_CFGS, FFTHaarSWT2d, create_baseline

RTOL = 1e-9
MANIFEST = load_manifest()


def test_names_are_the_published_ones() -> None:
    assert set(BASELINE_CFGS) == set(MANIFEST)


@pytest.mark.parametrize("name", list(BASELINE_CFGS))
def test_keys_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = create_baseline(name)
    got = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert got == MANIFEST[name]["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == MANIFEST[name]["params"]


@pytest.mark.parametrize("name", ["wsfvit_p1_224", "wsfvit_t_224"])
def test_parity(name: str) -> None:
    want = load_fixture(name)
    model = fill_by_key(create_baseline(name)).eval()
    errors = output_errors(*run_with_features(model, make_input(int(want["seed"]), int(want["img_size"]))), want)
    assert max(errors.values()) < RTOL, errors


def test_gradient_norms() -> None:
    model = fill_by_key(create_baseline("wsfvit_p1_224")).eval()
    x = make_input(0, 224).requires_grad_()
    model(x).square().mean().backward()
    errors = grad_norm_errors(model, load_grad_norms("wsfvit_p1_224"))
    assert max(errors.values()) < RTOL, max(errors, key=errors.__getitem__)
    assert x.grad is not None and x.grad.norm() > 0


@pytest.mark.parametrize(
    ("size", "border"),
    [
        ((32, 32), "wrap"),
        ((28, 28), "constant"),
        ((24, 32), "constant"),
        ((32, 24), "constant"),
        ((17, 9), "constant"),
        ((1, 1), "wrap"),
        ((2, 2), "wrap"),
    ],
)
def test_fft_transform_signs_and_border(size: tuple[int, int], border: Any) -> None:
    swt = FFTHaarSWT2d().double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), mode=border)
    a, b, c, d = padded[..., :-1, :-1], padded[..., :-1, 1:], padded[..., 1:, :-1], padded[..., 1:, 1:]
    want = np.concatenate([a + b + c + d, c + d - a - b, b + d - a - c, a - b - c + d], axis=1) / 2
    # the module's own filters carry 2^-1/2 in float32
    torch.testing.assert_close(swt(x), torch.from_numpy(want), rtol=1e-6, atol=1e-6)


def test_fft_transform_against_pywt() -> None:
    x = torch.randn(1, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    [(cA, (cH, cV, cD))] = pywt.swt2(x.numpy(), "haar", level=1, axes=(-2, -1))
    want = torch.from_numpy(np.concatenate([cA, -cH, -cV, cD], axis=1))
    torch.testing.assert_close(FFTHaarSWT2d().double()(x), want, rtol=1e-6, atol=1e-6)


def test_other_sizes() -> None:
    model = create_baseline("wsfvit_p0_224", img_size=64, num_classes=10).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 128)).shape == (2, 10)
        with pytest.raises(ValueError, match="does not divide"):
            model(torch.randn(1, 3, 96, 96))
    with pytest.raises(ValueError, match="multiple of 32"):
        create_baseline("wsfvit_p0_224", img_size=100)
    with pytest.raises(ValueError, match="no baseline"):
        create_baseline("wsfvit_x_224")
