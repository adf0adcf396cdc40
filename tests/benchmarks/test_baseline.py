"""The baseline must be the published computation: its keys and shapes, its numbers, its gradients."""

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from torch import nn

from wsfvit.benchmarks.baseline import BASELINE_CFGS, FFTHaarSWT2d, create_baseline

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
RTOL = 1e-9


def fill_from_keys(model: nn.Module) -> nn.Module:
    """Fill every parameter and buffer from its state-dict key, as the fixtures were made: in float32, then widened."""
    model = model.double().eval()
    state = model.state_dict()
    for key, old in state.items():
        if not old.is_floating_point():
            continue
        g = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        r = torch.randn(old.shape, generator=g)
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "w_l":
            r = torch.full_like(old, 0.5).sqrt()
        elif leaf == "w_h":
            r = torch.full_like(old, 0.5).sqrt() * torch.tensor([[1.0, -1.0]])
        elif leaf == "running_mean":
            r = 0.1 * r
        elif leaf == "running_var":
            r = 1 + 0.1 * r.abs()
        elif leaf == "relative_position_bias_table":
            r = 0.5 * r
        elif r.ndim >= 2:
            # The order of the two roundings matters at 1e-8.
            gain = 0.3 if key.endswith("attn_inter.attn.qkv.weight") else 1.0
            r = gain * r / math.sqrt(r.numel() / r.shape[0])
        elif leaf == "weight":
            r = 1 + 0.1 * r
        else:
            r = 0.1 * r
        state[key] = r
    model.load_state_dict(state, strict=True)
    return model


def relative_error(got: torch.Tensor, want: np.ndarray) -> float:
    reference = torch.from_numpy(want)
    return float((got.detach() - reference).norm() / reference.norm())


def parity_input(img_size: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, img_size, img_size, generator=g).double()


def parity_errors(name: str) -> dict[str, float]:
    """Relative error of the logits and of each sampled feature map against the fixture of `name`."""
    want = np.load(FIXTURES / f"{name}.npz")
    model = fill_from_keys(create_baseline(name))
    features: list[torch.Tensor] = []
    for part in (model.stem, *model.stages):
        part.register_forward_hook(lambda _module, _args, out: features.append(out))
    with torch.no_grad():
        logits = model(parity_input(int(want["img_size"]), int(want["seed"])))
    errors = {"logits": relative_error(logits, want["logits"])}
    for i, feature in enumerate(features):
        assert feature.shape == tuple(want[f"feature{i}_shape"])
        picks = torch.linspace(0, feature.numel() - 1, 256).long()
        errors[f"feature{i}"] = relative_error(feature.flatten()[picks], want[f"feature{i}_sample"])
    return errors


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads(gzip.decompress((FIXTURES / "manifest.json.gz").read_bytes()))


def test_names_are_the_published_ones(manifest: dict[str, Any]) -> None:
    assert set(BASELINE_CFGS) == set(manifest)


@pytest.mark.parametrize("name", list(BASELINE_CFGS))
def test_keys_and_shapes(name: str, manifest: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = create_baseline(name)
    got = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert got == manifest[name]["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == manifest[name]["params"]


@pytest.mark.parametrize("name", ["wsfvit_p1_224", "wsfvit_t_224"])
def test_parity(name: str) -> None:
    errors = parity_errors(name)
    assert len(errors) == 6
    assert max(errors.values()) < RTOL, errors


def test_gradient_norms() -> None:
    want = json.loads((FIXTURES / "wsfvit_p1_224.grad_norms.json").read_text())
    model = fill_from_keys(create_baseline("wsfvit_p1_224"))
    x = parity_input(224, 0).requires_grad_()
    model(x).square().mean().backward()
    got = {key: float(p.grad.norm()) for key, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == want.keys()
    for key, norm in want.items():
        assert got[key] == pytest.approx(norm, rel=RTOL, abs=0), key
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
