"""Attention between the channels of a head (after DaViT, Ding et al., 2022)."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from wsfvit.wavelets.filterbank import without_autocast

from .cpu_training import linear
from .inline import TOKENS_PER_CHANNEL, can_inline


@register_notrace_module
class ChannelAttention(nn.Module):
    """Attention between the channels of a head: A = softmax(s K^T V) over the last axis, output A Q^T; s = d^-1/2.

    With explicit subbands (`num_subbands` 4, folded into the batch, subband index fastest) a head has the channels of
    all four subbands, so A has shape (4d, 4d) and mixes the subbands.

    Q, K and V are linear in the tokens X, so K^T V follows from the second moments X^T X, and the output is one matrix
    per image times X. With many tokens per channel this form is used: it never computes Q, K and V, has the same
    values up to rounding and needs much less memory traffic.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads; d = C / num_heads.
        num_subbands: Consecutive maps of one image in the batch: 1 or 4.
        scale: s; default d^-1/2, also with four subbands.
    """

    def __init__(self, dim: int, num_heads: int, num_subbands: int = 1, scale: float | None = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not a multiple of the number of heads {num_heads}")
        self.num_heads = num_heads
        self.num_subbands = num_subbands
        self.scale = (dim // num_heads) ** -0.5 if scale is None else scale
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B * num_subbands, H, W, C) -> the same."""
        _, H, W, C = x.shape
        tokens_are_many = H * W >= TOKENS_PER_CHANNEL * self.num_subbands * C
        if tokens_are_many and can_inline(self.qkv, nn.Linear) and can_inline(self.proj, nn.Linear):
            return self._attend_by_moments(x)
        return self._attend(x)

    def _attend(self, x: Tensor) -> Tensor:
        _, H, W, C = x.shape
        K, N = self.num_subbands, H * W
        qkv = linear(self.qkv, x).view(-1, K, N, 3, self.num_heads, C // self.num_heads)
        # (3, B, heads, N, K * d): the channels of a head, over all subbands, in the last axis.
        q, k, v = qkv.permute(3, 0, 4, 2, 1, 5).flatten(4)
        attn = ((k * self.scale).transpose(-2, -1) @ v).softmax(dim=-1)
        # A Q^T, not Q A^T: a saturated softmax is full of denormals, which a CPU multiplies faster on the left.
        out = (attn @ q.transpose(-2, -1)).unflatten(2, (K, -1))
        return linear(self.proj, out.permute(0, 2, 4, 1, 3).reshape(-1, H, W, C))

    def _attend_by_moments(self, x: Tensor) -> Tensor:
        _, H, W, C = x.shape
        K, N = self.num_subbands, H * W
        device = x.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with without_autocast(x.device):
            x = x.reshape(-1, K, N, C).transpose(1, 2).reshape(-1, N, K * C)
            # Means, not sums: float16 would overflow.
            moments = torch.baddbmm(x.new_zeros(1, 1, 1), x.transpose(1, 2), x, beta=0, alpha=1 / N)
            matrix, summand = self._collapse(moments.view(-1, K, C, K, C), x.mean(1).view(-1, K, C), N)
            x = torch.baddbmm(summand.to(x.dtype), x, matrix.to(x.dtype).transpose(1, 2))
        return x.view(-1, N, K, C).transpose(1, 2).reshape(-1, H, W, C)

    def _collapse(self, moments: Tensor, mean: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The attention as an affine map of a token, from the second moments (B, K, C, K, C) and mean (B, K, C).

        Returns:
            M (B, K * C, K * C) and m (B, 1, K * C), float32 or wider: a token x of all subbands becomes M x + m.
        """
        dtype = torch.promote_types(moments.dtype, torch.float32)
        _, K, C = mean.shape
        # Tokens get a last channel of ones in every subband, and the weights their biases as a last column.
        column = mean[..., None, None].expand(-1, -1, -1, K, 1)
        row = F.pad(mean, (0, 1), value=1.0)[:, None, None].expand(-1, K, -1, -1, -1)
        moments = torch.cat((torch.cat((moments, column), dim=4), row), dim=2).to(dtype)
        q, k, v = torch.cat((self.qkv.weight, self.qkv.bias.unsqueeze(1)), dim=1).to(dtype).chunk(3)

        head = torch.arange(C, device=mean.device) // (C // self.num_heads)
        logits = (k @ moments.flatten(3)).unflatten(3, (K, C + 1)) @ v.t() * (num_tokens * self.scale)
        logits = logits.masked_fill((head[:, None] != head)[:, None], float("-inf"))
        attn = logits.flatten(3).softmax(-1).view_as(logits)  # (B, K, C, K, C), zero between heads

        matrix = self.proj.weight.to(dtype) @ (attn @ q).flatten(3)
        matrix = matrix.unflatten(3, (K, C + 1))
        summand = matrix[..., C].sum(-1) + self.proj.bias.to(dtype)
        return matrix[..., :C].reshape(-1, K * C, K * C), summand.view(-1, 1, K * C)
