"""The published SimVP's state dict: its keys, its filling rule, and what they are called and how they lie here."""

import re
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

HEAD_DIM = 32
RENAMED = (
    (r"^dwt_l2\.", "front.dwt."),
    (r"^norm\.", "front.norm."),
    (r"^enc\.enc\.0\.conv\.", "encoder.first."),
    (r"^enc\.enc\.([1-9])\.conv\.", lambda m: f"encoder.rest.{int(m[1]) - 1}."),
    (r"^dec\.dec\.([0-2])\.conv\.", r"decoder.first.\1."),
    (r"^dec\.dec\.3\.conv\.", "decoder.last."),
    (r"^dec\.readout\.", "decoder.readout."),
    (r"^(decoder\.first\.[02]\.conv)\.0\.", r"\1."),
    (r"^hid\.enc\.(\d)\.reduction\.", r"translator.\1.proj."),
    (r"^hid\.enc\.(\d)\.block\.", r"translator.\1.block."),
    (r"\.attn_block\.", ".attn_local."),
    (r"\.attn_channel\.", ".attn_inter."),
    (r"\.attn_grid\.", ".attn_global."),
)


def fill(shapes: Mapping[str, Mapping[str, object]]) -> dict[str, Tensor]:
    """The fixture's weights from the keys alone, in float32."""
    state = {}
    for key, entry in shapes.items():
        shape, name = list(entry["shape"]), key.rsplit(".", 1)[-1]
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


def convert(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with the published weights."""
    state = {}
    for key, value in published.items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        if re.search(r"attn_(local|global)\.attn\.qkv\.", key):
            value = qkv_first(value)
        if key.endswith("relative_position_bias_table"):
            value = bias_by_head(value)
        state[key] = value
    return state


def qkv_first(value: Tensor) -> Tensor:
    """Rows in the order (heads, q k v, head_dim) -> rows in the order (q k v, heads, head_dim)."""
    return value.unflatten(0, (-1, 3, HEAD_DIM)).transpose(0, 1).flatten(0, 2)


def bias_by_head(table: Tensor) -> Tensor:
    """Swin's table ((2P - 1)^2, heads), offset of query minus key -> (heads, 2P - 1, 2P - 1), key minus query."""
    side = round(table.shape[0] ** 0.5)
    return table.T.unflatten(1, (side, side)).flip(1, 2).contiguous()
