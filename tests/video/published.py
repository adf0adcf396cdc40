"""The published SimVP's state dict: keys, shapes at the published widths and at small ones, filling rule."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from wsfvit.video import SimVPConfig

FIXTURES = Path(__file__).parents[1] / "fixtures" / "video"
# The published shapes with 4 frames for 10, and widths, heads, windows that make the model small enough for any test.
SMALL = SimVPConfig(frames_in=4, frames_out=4, hid_s=8, hid_t=64, head_dim=8, window_size=4)
_SMALL_SIZES = {64: 8, 256: 32, 225: 49}  # encoder and decoder; bias tables
_SMALL_SIZES |= {640: 32, 2560: 128, 1920: 96, 5120: 256, 160: 8, 20: 4}  # first block
_SMALL_SIZES |= {512: 64, 2048: 256, 1536: 192, 4096: 512, 128: 16, 16: 8}  # second block


def published_shapes(small: bool = False) -> dict[str, list[int]]:
    """The release's keys with their shapes, or with those of ``SMALL``."""
    entries = json.loads((FIXTURES / "simvp_state_keys.json").read_text())
    sizes = _SMALL_SIZES if small else {}
    return {key: [sizes.get(size, size) for size in entry["shape"]] for key, entry in entries.items()}


def fill(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """The fixture's weights from the keys, in float32."""
    state = {}
    for key, shape in shapes.items():
        name = key.rsplit(".", 1)[-1]
        if name == "num_batches_tracked":
            state[key] = torch.tensor(0)
            continue
        if name in ("w_l", "w_h"):
            state[key] = torch.tensor([[0.5**0.5, 0.5**0.5 if name == "w_l" else -(0.5**0.5)]])
            continue
        r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        if len(shape) >= 2:
            state[key] = r / (r.numel() / shape[0]) ** 0.5
        elif name == "running_var":
            state[key] = 1 + 0.1 * r.abs()
        else:
            state[key] = 1 + 0.1 * r if name == "weight" else 0.1 * r
    return state
