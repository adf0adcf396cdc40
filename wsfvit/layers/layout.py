"""The two orders of a map's axes, each a view of the other."""

from torch import Tensor


def to_nhwc(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C); contiguous where ``x`` is in channels-last memory."""
    return x.permute(0, 2, 3, 1)


def to_nchw(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W); in channels-last memory where ``x`` is contiguous."""
    return x.permute(0, 3, 1, 2)
