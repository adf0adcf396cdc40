"""Explicit Haar subbands folded into the batch: transform, inverse, joint normalisation."""

import torch.nn.functional as F
from torch import Tensor, nn

from wsfvit.wavelets import haar_dwt2d, haar_idwt2d

NUM_SUBBANDS = 4


def to_subbands(x: Tensor) -> Tensor:
    """Transforms a map and folds its subbands into the batch.

    Args:
        x: (B, C, H, W), any H, W >= 1. In channels-last memory only the transform moves data.

    Returns:
        (4 * B, C, ceil(H / 2), ceil(W / 2)), subband index (cA, cH, cV, cD) fastest; channels-last if ``x`` is.
    """
    return haar_dwt2d(x).flatten(0, 1)


def from_subbands(x: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Inverse of `to_subbands`: (4 * B, C, h, w) -> (B, C, H, W), (H, W) = output_size; channels-last if ``x`` is."""
    return haar_idwt2d(x.unflatten(0, (-1, NUM_SUBBANDS)), output_size)


class SubbandLayerNorm(nn.LayerNorm):
    """LayerNorm with mean and variance over the four subbands of a location together.

    A LayerNorm on each subband removes the relative energy of the subbands at a location; this one keeps it. Weight and
    bias have shape (C,), as in the plain LayerNorm, so state dicts fit both.

    Shape: x (4 * B, h, w, C) with subbands folded into the batch, subband index fastest -> the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        B4, h, w, C = input.shape
        x = input.view(-1, NUM_SUBBANDS, h, w, C).permute(0, 2, 3, 1, 4).flatten(3)
        x = F.layer_norm(x, (NUM_SUBBANDS * C,), eps=self.eps).unflatten(3, (NUM_SUBBANDS, C))
        return (x * self.weight + self.bias).permute(0, 3, 1, 2, 4).reshape(B4, h, w, C)
