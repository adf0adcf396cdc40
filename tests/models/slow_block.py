"""A slow WSF block written from the formulas: PyWavelets for the transform, einsum and loops for attention, no padding.

It reads the weights of a `WSFBlock` and computes everything after the MBConv in another way: attention runs over the
list of real tokens of each group, so there is nothing to pad or mask.
"""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsfvit.models.wsfvit import WSFBlock

pywt = pytest.importorskip("pywt")


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(var + norm.eps) * norm.weight + norm.bias


def mlp(x: Tensor, m: nn.Module, tanh: bool) -> Tensor:
    x = torch.einsum("...c,dc->...d", x, m.fc1.weight) + m.fc1.bias
    if tanh:
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return torch.einsum("...d,cd->...c", x, m.fc2.weight) + m.fc2.bias


def group_tokens(map_size: tuple[int, int], size: tuple[int, int], grid: bool) -> dict:
    """Group -> list of (row, column, position in the group) of the real tokens."""
    (H, W), (P, Q) = map_size, size
    step_h, step_w = math.ceil(H / P), math.ceil(W / Q)
    groups = defaultdict(list)
    for r in range(H):
        for c in range(W):
            if grid:
                groups[r % step_h, c % step_w].append((r, c, r // step_h, c // step_w))
            else:
                groups[r // P, c // Q].append((r, c, r % P, c % Q))
    return groups


def partition_attention(x: Tensor, part: nn.Module, grid: bool) -> Tensor:
    """One map x (H, W, C) through local or global attention with MLP."""
    H, W, C = x.shape
    P, Q = part.window_size
    table, heads = part.attn.rel_pos.relative_position_bias_table, part.attn.num_heads
    d = C // heads
    y = layer_norm(x, part.norm1)
    out = torch.zeros_like(x)
    for tokens in group_tokens((H, W), (min(P, H), min(Q, W)), grid).values():
        rows, cols, i, j = (torch.tensor(v) for v in zip(*tokens, strict=True))
        qkv = torch.einsum("nc,dc->nd", y[rows, cols], part.attn.qkv.weight) + part.attn.qkv.bias
        q, k, v = qkv.reshape(-1, 3, heads, d).unbind(1)
        bias = table[:, i[None, :] - i[:, None] + P - 1, j[None, :] - j[:, None] + Q - 1]
        if grid:  # softmax(K V^T) Q
            attn = (torch.einsum("nhd,mhd->hnm", k, v) / math.sqrt(d) + bias).softmax(-1)
            mixed = torch.einsum("hnm,mhd->nhd", attn, q)
        else:
            attn = (torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(d) + bias).softmax(-1)
            mixed = torch.einsum("hnm,mhd->nhd", attn, v)
        out[rows, cols] = torch.einsum("nc,dc->nd", mixed.reshape(-1, C), part.attn.proj.weight) + part.attn.proj.bias
    x = x + out
    return x + mlp(layer_norm(x, part.norm2), part.mlp, tanh=True)


def inter_attention(x: Tensor, part: nn.Module) -> Tensor:
    """The K maps of one image, x (K, H, W, C), through inter-subband attention: (K d) x (K d) per head."""
    K, H, W, C = x.shape
    heads = part.attn.num_heads
    d = C // heads

    def encode(x: Tensor, conv: nn.Conv2d) -> Tensor:
        return x + F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=C).permute(0, 2, 3, 1)

    x = encode(x, part.cpe[0].proj)
    qkv = torch.einsum("khwc,dc->khwd", layer_norm(x, part.norm1), part.attn.qkv.weight) + part.attn.qkv.bias
    q, k, v = qkv.reshape(K, H * W, 3, heads, d).unbind(2)
    logits = torch.einsum("anhd,bnhe->hadbe", k, v) / math.sqrt(d)  # subband a, channel d against subband b, channel e
    attn = logits.reshape(heads, K * d, K * d).softmax(-1).reshape(heads, K, d, K, d)
    mixed = torch.einsum("hadbe,bnhe->anhd", attn, q).reshape(K, H, W, C)
    x = x + torch.einsum("khwc,dc->khwd", mixed, part.attn.proj.weight) + part.attn.proj.bias
    x = encode(x, part.cpe[1].proj)
    return x + mlp(layer_norm(x, part.norm2), part.mlp, tanh=False)


def slow_block(x: Tensor, block: WSFBlock) -> Tensor:
    """The block on images x (B, C, H, W), float64, evaluation mode."""
    images = []
    for image in block.conv(x):
        _, H, W = image.shape
        if block.explicit_dwt:
            cA, details = pywt.dwt2(image.numpy(), "haar", mode="zero")
            maps = torch.from_numpy(np.stack([cA, *details])).permute(0, 2, 3, 1)
        else:
            maps = image.permute(1, 2, 0).unsqueeze(0)
        maps = torch.stack([partition_attention(m, block.attn_local, grid=False) for m in maps])
        maps = inter_attention(maps, block.attn_inter)
        maps = torch.stack([partition_attention(m, block.attn_global, grid=True) for m in maps])
        maps = maps.permute(0, 3, 1, 2).numpy()
        if block.explicit_dwt:
            images.append(torch.from_numpy(pywt.idwt2((maps[0], tuple(maps[1:])), "haar", mode="zero")[:, :H, :W]))
        else:
            images.append(torch.from_numpy(maps[0]))
    return torch.stack(images)
