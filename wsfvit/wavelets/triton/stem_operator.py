"""The stem's transform, BatchNorm and GELU in evaluation as one operator, opaque to compilers.

Importing this module does not import Triton; only a call does.
"""

import torch


@torch.library.custom_op("wsfvit::haar_swt2d_affine_gelu", mutates_args=())
def haar_swt2d_affine_gelu(
    x: torch.Tensor, factor: torch.Tensor, summand: torch.Tensor, periodic: bool, dtype: torch.dtype
) -> torch.Tensor:
    """GELU (tanh form) of factor * subband + summand by a Triton kernel, without a gradient; see `haar_swt2d`.

    Args:
        x: Images (B, 3, H, W), float16, bfloat16 or float32, any strides, on a GPU. Arithmetic is in float32.
        factor: (12,), contiguous: per subband (cA, cH, cV, cD) and channel, times the transform's 1/2.
        summand: (12,), contiguous.
        periodic: Periodic border after the last row and column, else zeros.
        dtype: Of the result.

    Returns:
        (B, 12, H, W), channels-last.
    """
    from wsfvit.wavelets.triton import haar

    return haar.haar_swt2d_affine_gelu(x, factor, summand, periodic, dtype)


@haar_swt2d_affine_gelu.register_fake
def _(x: torch.Tensor, factor: torch.Tensor, summand: torch.Tensor, periodic: bool, dtype: torch.dtype) -> torch.Tensor:
    B, C, H, W = x.shape
    return x.new_empty(B, H, W, 4 * C, dtype=dtype).permute(0, 3, 1, 2)
