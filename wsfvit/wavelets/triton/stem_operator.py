"""The stem's transform, BatchNorm and GELU in evaluation as one operator, opaque to compilers.

Importing this module does not import Triton; only a call does.
"""

from typing import cast

import torch
from torch import Tensor

from wsfvit.wavelets.backend import eager_module


@torch.library.custom_op("wsfvit::haar_swt2d_affine_gelu", mutates_args=())
def haar_swt2d_affine_gelu(x: Tensor, factor: Tensor, summand: Tensor, periodic: bool, dtype: torch.dtype) -> Tensor:
    """GELU (tanh form) of factor * subband + summand by a Triton kernel, without a gradient; see `haar_swt2d`.

    Shape: images (B, 3, H, W) -> (B, 12, H, W), channels-last, of ``dtype``.

    Images are float16, bfloat16 or float32, of any strides, on a GPU; arithmetic is in float32. ``factor`` (12,) is per
    subband (cA, cH, cV, cD) and channel, times the transform's 1/2; it and ``summand`` (12,) are contiguous. The border
    after the last row and column is ``periodic``, else zeros.
    """
    return cast(Tensor, eager_module(x.device).haar_swt2d_affine_gelu(x, factor, summand, periodic, dtype))


@haar_swt2d_affine_gelu.register_fake
def _(x: Tensor, factor: Tensor, summand: Tensor, periodic: bool, dtype: torch.dtype) -> Tensor:
    B, C, H, W = x.shape
    return x.new_empty(B, H, W, 4 * C, dtype=dtype).permute(0, 3, 1, 2)
