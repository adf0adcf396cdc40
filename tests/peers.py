"""Numeric parity with the peers' published code: filling rule, fixtures, and the check of a model against one."""

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).parent / "fixtures" / "peers"


@dataclass(frozen=True)
class Case:
    """One fixture: what the published code was built with, its state-dict shapes, outputs and gradients."""

    info: dict[str, Any]
    arrays: dict[str, Tensor]

    @property
    def shapes(self) -> dict[str, list[int]]:
        return dict(self.info["state_dict"])

    def output(self, index: int = 0) -> Tensor:
        """In float64 where the fixture has it, else in float32."""
        return self.arrays.get(f"out{index}_f64", self.arrays[f"out{index}_f32"])

    def make_input(self) -> Tensor:
        """float64, of float32 values."""
        return torch.randn(self.info["input_shape"], generator=torch.Generator().manual_seed(0)).double()


def load_case(name: str) -> Case:
    with np.load(FIXTURES / f"{name}.npz") as data:
        arrays = {key: torch.from_numpy(np.asarray(data[key])) for key in data.files}
    return Case(json.loads((FIXTURES / f"{name}.json").read_text()), arrays)


# One release of each family: a registered name and the fields of the fixture's small model, the fixture, and how the
# authors' training code wraps the weights.
RELEASES: dict[str, tuple[str, dict[str, Any], str, Callable[[Any], Any]]] = {
    "wavemix": ("wavemix_lite_144_7", dict(embed_dim=16, depth=3), "wavemix_L1_strided", lambda state: state),
    "wacnn": (
        "wacnn_resnet18",
        {},
        "wacnn_resnet18_wa_haar",
        lambda state: {"epoch": 160, "arch": "resnet18", "state_dict": state, "best_acc": 92.5, "optimizer": {}},
    ),
    "gfn": ("gfn_vit_xs_patch4_32", dict(embed_dim=48, depth=2), "gfnet_d48_depth2", lambda state: {"model": state}),
}


def save_release(release: str, folder: Path) -> Path:
    """A file as its authors' code writes it: their keys and shapes, filled by key."""
    _, _, case, wrap = RELEASES[release]
    state = {key: fill_value(key, torch.empty(shape)) for key, shape in load_case(case).shapes.items()}
    path = folder / f"{release}.pth.tar"
    torch.save(wrap(state), path)
    return path


def check_outputs_of_release(model: nn.Module, release: str) -> None:
    """The logits of the authors' code in float32."""
    case = load_case(RELEASES[release][2])
    with torch.no_grad():
        assert _relative_error(model.eval()(case.make_input().float()), case.output()) < 1e-5


def fill_by_key(model: nn.Module) -> nn.Module:
    """Fills the state dict by its keys, makes the model float64 and puts it into eval mode."""
    model.double().eval()
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(fill_value(key, value))
    return model


def fill_value(key: str, like: Tensor) -> Tensor:
    """The value of a state-dict entry in float32; dividing instead of multiplying would miss by its last bit."""
    r = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if r.ndim >= 2:
        return r * (1 / math.sqrt(r.numel() / r.shape[0]))
    if key.endswith("running_var"):
        return 1 + 0.1 * r.abs()
    return 1 + 0.1 * r if key.endswith(("weight", "gamma")) else 0.1 * r


def check_parity(model: nn.Module, case: Case, forward: Callable[[Tensor], Tensor] | None = None) -> None:
    """Parameters, keys, shapes, outputs (float64 and float32), every gradient norm and the input gradient's corner.

    A fixture of a full-width model may hold no gradients.

    Args:
        model: With the published keys; is filled here.
        case: The fixture.
        forward: What to call where the published module is only a part of ours.
    """
    forward = forward or model
    assert sum(p.numel() for p in model.parameters()) == case.info["params"]
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == case.shapes
    fill_by_key(model)
    x, expected = case.make_input().requires_grad_(), case.output()
    y = forward(x)
    assert list(y.shape) == case.info["output_shapes"][0]
    assert _relative_error(y, expected) < (1e-9 if expected.dtype == torch.float64 else 1e-5)

    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
    (y * weights).sum().backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()} | {"__input__": x.grad.norm().item()}
    assert norms.keys() == case.info["grad_norms"].keys() or not case.info["grad_norms"]
    for name, norm in case.info["grad_norms"].items():
        assert abs(norms[name] - norm) < 1e-9 * norm, name
    for key, corner in case.arrays.items():
        if key.startswith("gradx_corner"):
            assert _relative_error(x.grad[..., :8, :8], corner) < (1e-9 if corner.dtype == torch.float64 else 1e-5)

    model.float()
    with torch.no_grad():
        assert _relative_error(forward(x.float()), expected) < 1e-5


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
