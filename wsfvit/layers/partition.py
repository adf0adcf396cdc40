"""Partition of a map into windows or into a dilated grid, and its inverse.

All maps are channels-last: x (B, H, W, C). A partition of size (P, Q) gives (B * n, P * Q, C), n = H * W / (P * Q).
Window: the P x Q tokens of a group are neighbours. Grid: they are H / P and W / Q apart, spread over the map.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Partition = Literal["window", "grid"]


def window_partition(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Partitions x (B, H, W, C) into windows of neighbouring tokens: (B * n, P * Q, C). P divides H, Q divides W."""
    B, H, W, C = x.shape
    P, Q = size
    x = x.view(B, H // P, P, W // Q, Q, C)
    return x.transpose(2, 3).reshape(-1, P * Q, C)


def window_reverse(windows: Tensor, size: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """Inverse of `window_partition`: (B * n, P * Q, C) -> (B, H, W, C)."""
    (P, Q), (H, W), C = size, map_size, windows.shape[-1]
    x = windows.view(-1, H // P, W // Q, P, Q, C)
    return x.transpose(2, 3).reshape(-1, H, W, C)


def grid_partition(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Partitions x (B, H, W, C) into groups of spread tokens: (B * n, P * Q, C). P divides H and Q divides W."""
    B, H, W, C = x.shape
    P, Q = size
    x = x.view(B, P, H // P, Q, W // Q, C)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, P * Q, C)


def grid_reverse(groups: Tensor, size: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """Inverse of `grid_partition`: (B * n, P * Q, C) -> (B, H, W, C)."""
    (P, Q), (H, W), C = size, map_size, groups.shape[-1]
    x = groups.view(-1, H // P, W // Q, P, Q, C)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, H, W, C)


PARTITIONS = {"window": (window_partition, window_reverse), "grid": (grid_partition, grid_reverse)}


def pad_to_multiple(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Appends zero rows and columns to x (B, H, W, C) until (P, Q) divides (H, W); returns x itself if it does."""
    pad_h, pad_w = (-x.shape[1]) % size[0], (-x.shape[2]) % size[1]
    return F.pad(x, (0, 0, 0, pad_w, 0, pad_h)) if pad_h or pad_w else x


def padding_mask(
    map_size: tuple[int, int], size: tuple[int, int], partition: Partition, device: torch.device
) -> Tensor | None:
    """Mask of the padding of each group, for a map of `map_size` (H, W) before padding and parts of `size` (P, Q).

    Returns:
        Boolean (n, P * Q), True for tokens of the map and False for padding; None without padding. Every group has at
        least one token of the map, so a softmax over a masked row is always defined.
    """
    (H, W), (P, Q) = map_size, size
    if H % P == 0 and W % Q == 0:
        return None
    real = torch.ones(1, H, W, 1, dtype=torch.uint8, device=device)
    return PARTITIONS[partition][0](pad_to_multiple(real, size), size).squeeze(-1).bool()
