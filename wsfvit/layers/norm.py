"""Normalisation of Haar subbands."""

import torch.nn.functional as F
from torch import Tensor, nn

NUM_SUBBANDS = 4


class SubbandLayerNorm(nn.LayerNorm):
    """LayerNorm whose mean and variance are taken over the four subbands of a location together.

    A LayerNorm on each subband alone removes how much energy a location has in each of them; this one keeps it.
    Weight and bias have shape (C,), as in the plain LayerNorm, so that state dicts fit both.

    Shape: x (4 * B, h, w, C) with subbands folded into the batch, subband index fastest -> the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        B4, h, w, C = input.shape
        x = input.view(-1, NUM_SUBBANDS, h, w, C).permute(0, 2, 3, 1, 4).flatten(3)
        x = F.layer_norm(x, (NUM_SUBBANDS * C,), eps=self.eps).unflatten(3, (NUM_SUBBANDS, C))
        return (x * self.weight + self.bias).permute(0, 3, 1, 2, 4).reshape(B4, h, w, C)
