"""Between the pixel domain and explicit Haar subbands folded into the batch."""

from torch import Tensor

from wsfvit.wavelets import haar_dwt2d, haar_idwt2d

from .norm import NUM_SUBBANDS


def to_subbands(x: Tensor) -> Tensor:
    """Transforms an NCHW map and folds its subbands into the batch, channels-last.

    Args:
        x: (B, C, H, W), any H, W >= 1. In channels-last memory nothing but the transform itself moves data.

    Returns:
        (4 * B, ceil(H / 2), ceil(W / 2), C), subband index (cA, cH, cV, cD) fastest.
    """
    return haar_dwt2d(x).flatten(0, 1).permute(0, 2, 3, 1)


def from_subbands(x: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Undoes `to_subbands`: (4 * B, h, w, C) -> (B, C, H, W) in channels-last memory, (H, W) = output_size."""
    return haar_idwt2d(x.permute(0, 3, 1, 2).unflatten(0, (-1, NUM_SUBBANDS)), output_size)
