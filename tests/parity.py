"""Filling rule and fixtures of the published system's numeric parity."""

import gzip
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Limits of the relative error against the fixtures.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}

FIXTURES = Path(__file__).parent / "fixtures" / "parity"


def load_manifest() -> dict[str, Any]:
    """Image size, parameter count and state-dict shapes of every published name."""
    return json.loads(gzip.decompress((FIXTURES / "manifest.json.gz").read_bytes()))


def load_fixture(name: str) -> dict[str, Any]:
    """Logits and sampled stage features of a published model, in float64."""
    with np.load(FIXTURES / f"{name}.npz") as data:
        return {key: torch.from_numpy(np.asarray(data[key])) for key in data.files}


def load_grad_norms(name: str) -> dict[str, float]:
    """Norms of a published model's gradients of ``logits.square().mean()``, by parameter."""
    norms: dict[str, float] = json.loads((FIXTURES / f"{name}.grad_norms.json").read_text())
    return norms


def fill_by_key(model: nn.Module) -> nn.Module:
    """Fills every parameter and floating buffer of the state dict from its key and makes the model float64.

    The rule is computed in float32 and then widened, in the order of `fill_value`; any other order misses by 1e-8.
    """
    model.double()
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(fill_value(key, value))
    return model


def fill_value(key: str, like: Tensor) -> Tensor:
    """The value that the fixtures' filling rule gives to a state-dict entry."""
    if key.endswith("dwt_l2.w_l") or key.endswith("dwt_l2.w_h"):
        a = math.sqrt(0.5)
        return torch.tensor([[a, a if key.endswith("w_l") else -a]], dtype=torch.float64)
    r = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    name = key.rsplit(".", 1)[-1]
    if name == "running_mean":
        return 0.1 * r
    if name == "running_var":
        return 1 + 0.1 * r.abs()
    if name == "relative_position_bias_table":
        return 0.5 * r
    if r.ndim >= 2:
        gain = 0.3 if key.endswith("attn_inter.attn.qkv.weight") else 1.0
        return r * gain / math.sqrt(r.numel() / r.shape[0])
    return 1 + 0.1 * r if name == "weight" else 0.1 * r


def make_input(seed: int, img_size: int) -> Tensor:
    """The fixtures' images: (2, 3, S, S), float64."""
    return torch.randn(2, 3, img_size, img_size, generator=torch.Generator().manual_seed(seed)).double()


def sample(feature: Tensor) -> Tensor:
    """256 values spread over the flattened NCHW feature."""
    return feature.flatten()[torch.linspace(0, feature.numel() - 1, 256).long()]


def output_errors(logits: Tensor, features: Sequence[Tensor], expected: dict[str, Any]) -> dict[str, float]:
    """Relative error of the logits and of each sampled feature against a fixture; the shapes must agree."""
    errors = {"logits": relative_error(logits, expected["logits"])}
    for i, feature in enumerate(features):
        assert list(feature.shape) == expected[f"feature{i}_shape"].tolist()
        errors[f"feature{i}"] = relative_error(sample(feature), expected[f"feature{i}_sample"])
    assert len(errors) == 6
    return errors


def run_with_features(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the features of the stem and of each stage, without gradients."""
    features: list[Tensor] = []
    parts = (model.stem, *model.stages)
    hooks = [part.register_forward_hook(lambda _module, _args, output: features.append(output)) for part in parts]
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    return logits, features


def grad_norm_errors(model: nn.Module, expected: dict[str, float]) -> dict[str, float]:
    """Relative error of the norm of each parameter's gradient; the same parameters must have one."""
    actual = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert actual.keys() == expected.keys()
    return {name: abs(actual[name] - norm) / norm for name, norm in expected.items()}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected value, in float64."""
    actual, expected = actual.double().cpu(), expected.double().cpu()
    return ((actual - expected).norm() / expected.norm()).item()
