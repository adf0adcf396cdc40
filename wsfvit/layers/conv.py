"""Small parts that convolutional blocks share."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StridedConv2dSame(nn.Conv2d):
    """3x3 convolution of stride 2 that pads like TensorFlow's SAME: (B, C, H, W) -> (B, D, ceil(H / 2), ceil(W / 2)).

    SAME pads an even axis by one at its end alone, which `conv2d` cannot. Padding both ends by two gives the same
    values one place later, behind one that is cut off; that costs a row and a column of output instead of a copy of the
    input. An odd axis is padded by one at both ends.
    """

    def __init__(self, in_chs: int, out_chs: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__(in_chs, out_chs, 3, stride=2, groups=groups, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        padding, (skip_h, skip_w) = self.padding_and_skips(input)
        x = F.conv2d(input, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return x[:, :, skip_h:, skip_w:]

    def padding_and_skips(self, input: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Zeros at both ends of each axis, and how many values are then cut off at its start."""
        skip_h, skip_w = (1 - size % 2 for size in input.shape[2:])
        return (1 + skip_h, 1 + skip_w), (skip_h, skip_w)


class GELU(nn.Module):
    """GELU (Hendrycks & Gimpel, 2016), exact or with the tanh approximation; any shape.

    Args:
        approximate: "none" or "tanh".
        inplace: Overwrite the input where no gradient is wanted, for callers that own it. A large activation then costs
            one buffer less, which on a CPU is half its time.
    """

    def __init__(self, approximate: str = "none", inplace: bool = False) -> None:
        super().__init__()
        self.approximate = approximate
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        # torch.jit.trace compares a graph made with gradients to one made without: both must have the same operator.
        if self.inplace and not torch.is_grad_enabled() and not torch.jit.is_tracing():
            return torch.ops.aten.gelu_(x, approximate=self.approximate)
        return F.gelu(x, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, inplace={self.inplace}"


TanhGELU = partial(GELU, approximate="tanh")
