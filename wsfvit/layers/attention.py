"""The three attention parts of a WSF block, on maps x (B, C, H, W) in channels-last memory.

Attention between neighbouring tokens (window) and between tokens spread over the map (grid), both after MaxViT (Tu et
al., 2022), and between channels (`channel_attention.py`).

Maps keep this shape between the parts and are (B, H, W, C) only inside a residual: torch.compile would write permuted
inputs of convolutions twice.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from timm.layers import DropPath, Mlp, register_notrace_module
from torch import Tensor, fx, nn

from .channel_attention import ChannelAttention
from .conv import GELU, TanhGELU
from .cpu_training import depthwise, linear, trains_on_cpu
from .layout import to_nchw, to_nhwc
from .partition import PARTITIONS, Partition, pad_to_multiple, padding_mask
from .rel_pos import RelPosBias


@register_notrace_module
class MultiHeadAttention(nn.Module):
    """Self-attention between the N tokens of a group, with relative position bias; qkv laid out (3, heads, head_dim).

    Args:
        dim: Channels C, a multiple of `head_dim`.
        head_dim: Channels d of one head.
        window_size: (P, Q) of a group; N = P * Q.
        permute_roles: Use query = K, key = V, value = Q, as the published global attention:
            softmax(d^-1/2 K V^T + bias) Q.
    """

    def __init__(self, dim: int, head_dim: int, window_size: tuple[int, int], permute_roles: bool = False) -> None:
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"width {dim} is not a multiple of the head dimension {head_dim}")
        self.num_heads = dim // head_dim
        self.permute_roles = permute_roles
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rel_pos = RelPosBias(window_size, self.num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, window_size: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """Attends inside each group.

        Args:
            x: (B * n, N, C), the n groups of an image consecutively.
            window_size: (P, Q) with N = P * Q, at most the module's own.
            mask: Boolean (n, N), False for padding, which is not attended to; None without padding.

        Returns:
            (B * n, N, C), dtype of x (of autocast if enabled).
        """
        B, N, C = x.shape
        q, k, v = linear(self.qkv, x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.permute_roles:
            q, k, v = k, v, q
        bias = self.rel_pos(window_size).to(q.dtype).unsqueeze(0)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None, :], float("-inf")).repeat(B // mask.shape[0], 1, 1, 1)
        if trains_on_cpu(q):
            # With a bias that needs a gradient, the operator would compute this with two passes more.
            x = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return linear(self.proj, x.transpose(1, 2).reshape(B, N, C))


class TokenMlp(Mlp):
    """timm's `Mlp` without dropout, norm or gate, faster in training on a CPU: (..., C) -> (..., C)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.fc2, self.act(linear(self.fc1, x)))


class AttentionPart(nn.Module):
    """Modules of an attention part: positional encodings, LayerNorm, attention, LayerNorm, MLP, drop paths.

    Args:
        dim: Channels C.
        attn: The attention.
        mlp_ratio: Hidden width of the MLP over C.
        drop_path: Stochastic depth rate of each residual.
        act_layer: Activation of the MLP; called with inplace=True.
        norm_layer: Norm of tokens; called with C.
        num_cpe: Number of convolutional positional encodings.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        drop_path: float,
        act_layer: Callable[..., nn.Module],
        norm_layer: Callable[..., nn.Module],
        num_cpe: int = 0,
    ) -> None:
        super().__init__()
        self.cpe = nn.ModuleList(ConvPosEnc(dim) for _ in range(num_cpe))
        self.norm1 = norm_layer(dim)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = TokenMlp(dim, int(dim * mlp_ratio), act_layer=partial(act_layer, inplace=True))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()


class PartitionAttention(AttentionPart):
    """LayerNorm -> attention inside a partition -> residual; LayerNorm -> MLP -> residual.

    Any map size: a window larger than the map shrinks to it; a map that the window does not divide is padded, and the
    padding is masked and cropped. Shape: x (B, C, H, W) -> the same.

    Args:
        dim: Channels C.
        head_dim: Channels of one head.
        window_size: (P, Q), the window, or the number of grid tokens along each axis.
        partition: "window" for local attention (neighbouring tokens), "grid" for global attention (tokens spread over
            the map, with permuted roles).
        mlp_ratio, drop_path, act_layer, norm_layer: See `AttentionPart`.
    """

    attn: MultiHeadAttention

    def __init__(
        self,
        dim: int,
        head_dim: int,
        window_size: tuple[int, int],
        partition: Partition,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        act_layer: Callable[..., nn.Module] = TanhGELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ) -> None:
        attn = MultiHeadAttention(dim, head_dim, window_size, permute_roles=partition == "grid")
        super().__init__(dim, attn, mlp_ratio, drop_path, act_layer, norm_layer)
        self.partition = partition
        self.window_size = window_size

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Changes the window and interpolates the bias table."""
        self.window_size = window_size
        self.attn.rel_pos.set_window_size(window_size)

    def _attend(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same."""
        _, H, W, _ = x.shape
        groups, size, mask = _split(x, self.window_size, self.partition)
        return _join(self.attn(groups, size, mask), size, (H, W), self.partition)

    def forward(self, x: Tensor) -> Tensor:
        x = x + to_nchw(self.drop_path1(self._attend(self.norm1(to_nhwc(x)))))
        return x + to_nchw(self.drop_path2(self.mlp(self.norm2(to_nhwc(x)))))


@fx.wrap
def _split(
    x: Tensor, window_size: tuple[int, int], partition: Partition
) -> tuple[Tensor, tuple[int, int], Tensor | None]:
    """The groups of a map (B, H, W, C), their size and the mask of the padding."""
    _, H, W, _ = x.shape
    size = (min(window_size[0], H), min(window_size[1], W))
    mask = padding_mask((H, W), size, partition, x.device)
    return PARTITIONS[partition][0](pad_to_multiple(x, size), size), size, mask


@fx.wrap
def _join(x: Tensor, size: tuple[int, int], map_size: tuple[int, int], partition: Partition) -> Tensor:
    """The map of `map_size` (H, W) whose groups are `x`, without padding."""
    (H, W), (P, Q) = map_size, size
    padded_size = (H + -H % P, W + -W % Q)
    x = PARTITIONS[partition][1](x, size, padded_size)
    return x[:, :H, :W] if padded_size != map_size else x


class ConvPosEnc(nn.Module):
    """Positional encoding by a depthwise 3x3 convolution, added: x (B, C, H, W) -> the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + depthwise(self.proj, x)


class InterSubbandAttention(AttentionPart):
    """Positional encoding, LayerNorm -> channel attention -> residual, encoding, LayerNorm -> MLP -> residual.

    Shape: x (B * num_subbands, C, H, W) -> the same, any H and W.

    Args:
        dim: Channels C.
        num_heads: Heads of the channel attention.
        num_subbands: 1 where subbands live in the channels, 4 for explicit subbands folded into the batch.
        scale: Of the channel attention, see there.
        mlp_ratio, drop_path, act_layer, norm_layer: See `AttentionPart`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_subbands: int = 1,
        scale: float | None = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        act_layer: Callable[..., nn.Module] = GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ) -> None:
        attn = ChannelAttention(dim, num_heads, num_subbands, scale)
        super().__init__(dim, attn, mlp_ratio, drop_path, act_layer, norm_layer, num_cpe=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe[0](x)
        x = x + to_nchw(self.drop_path1(self.attn(self.norm1(to_nhwc(x)))))
        x = self.cpe[1](x)
        return x + to_nchw(self.drop_path2(self.mlp(self.norm2(to_nhwc(x)))))
