"""Learned relative position bias for attention inside a window or a grid group."""

import warnings

import torch
from timm.layers import resize_rel_pos_bias_table, trunc_normal_
from torch import Tensor, nn


def relative_position_index(window_size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Index (N, N) into a flattened (2P - 1) x (2Q - 1) table, N = P * Q: the offset of key minus query."""
    P, Q = window_size
    row = torch.arange(P, device=device).repeat_interleave(Q)
    col = torch.arange(Q, device=device).repeat(P)
    d_row = row[None, :] - row[:, None] + P - 1
    d_col = col[None, :] - col[:, None] + Q - 1
    return d_row * (2 * Q - 1) + d_col


def resize_bias_table(table: Tensor, window_size: tuple[int, int]) -> Tensor:
    """Interpolates a bias table (heads, 2p - 1, 2q - 1) for another window: (heads, 2P - 1, 2Q - 1), same dtype.

    timm's interpolation on a grid whose spacing grows geometrically away from offset 0, as for its Swin and MaxViT. An
    axis with a single entry is expanded by repetition.
    """
    shape = (table.shape[0], 2 * window_size[0] - 1, 2 * window_size[1] - 1)
    table = table.expand(-1, *(3 if n == 1 < m else n for n, m in zip(table.shape[1:], shape[1:], strict=True)))
    with warnings.catch_warnings():
        # timm's interpolator indexes with a list and passes strided points; torch warns about both on every load.
        warnings.simplefilter("ignore", UserWarning)
        return resize_rel_pos_bias_table(table, new_window_size=window_size, new_bias_shape=shape)


class RelPosBias(nn.Module):
    """Relative position bias as in MaxViT (Tu et al., 2022): one value per head and per offset of key to query.

    The table has shape (heads, 2P - 1, 2Q - 1); its key in a state dict ends in `relative_position_bias_table`.
    """

    index: Tensor

    def __init__(self, window_size: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        P, Q = self.window_size = window_size
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_heads, 2 * P - 1, 2 * Q - 1))
        self.register_buffer("index", relative_position_index(window_size), persistent=False)
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def init_non_persistent_buffers(self) -> None:
        """Recomputes the index; timm calls this after building a model on the meta device."""
        self.index = relative_position_index(self.window_size, self.index.device)

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Interpolates the table for another window; gradients of the old table are dropped."""
        if window_size == self.window_size:
            return
        self.window_size = window_size
        old = self.relative_position_bias_table
        with torch.no_grad():
            table = resize_bias_table(old, window_size)
        self.relative_position_bias_table = nn.Parameter(table.contiguous(), requires_grad=old.requires_grad)
        self.init_non_persistent_buffers()

    def forward(self, window_size: tuple[int, int] | None = None) -> Tensor:
        """The bias (heads, P * Q, P * Q), in the table's dtype, for queries (rows) and keys (columns) of a window.

        The window (default: the module's own) may be smaller than the module's, for maps smaller than that; offsets
        outside it are left out.
        """
        if window_size is None or window_size == self.window_size:
            return self.relative_position_bias_table.flatten(1)[:, self.index]
        (P, Q), (p, q) = self.window_size, window_size
        table = self.relative_position_bias_table[:, P - p : P + p - 1, Q - q : Q + q - 1]
        return table.flatten(1)[:, relative_position_index(window_size, table.device)]
