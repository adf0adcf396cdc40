"""Filling rule and fixtures of the published system's numeric parity."""

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).parent / "fixtures" / "parity"


def load_manifest() -> dict[str, Any]:
    """Image size, parameter count and state-dict shapes of every published name."""
    return json.loads(gzip.decompress((FIXTURES / "manifest.json.gz").read_bytes()))


def load_fixture(name: str) -> dict[str, Any]:
    """Logits and sampled stage features of a published model, in float64."""
    with np.load(FIXTURES / f"{name}.npz") as data:
        return {key: torch.from_numpy(np.asarray(data[key])) for key in data.files}


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


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected value, in float64."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
