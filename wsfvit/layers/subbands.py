"""Between the pixel domain and explicit Haar subbands folded into the batch."""

from torch import Tensor

from wsfvit.wavelets import haar_dwt2d, haar_idwt2d

from .norm import NUM_SUBBANDS


def to_subbands(x: Tensor) -> Tensor:
    """Transforms a map and folds its subbands into the batch.

    Args:
        x: (B, C, H, W), any H, W >= 1. In channels-last memory nothing but the transform itself moves data.

    Returns:
        (4 * B, C, ceil(H / 2), ceil(W / 2)), subband index (cA, cH, cV, cD) fastest; channels-last if ``x`` is.
    """
    return haar_dwt2d(x).flatten(0, 1)


def from_subbands(x: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Undoes `to_subbands`: (4 * B, C, h, w) -> (B, C, H, W), (H, W) = output_size; channels-last if ``x`` is."""
    return haar_idwt2d(x.unflatten(0, (-1, NUM_SUBBANDS)), output_size)
