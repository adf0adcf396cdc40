"""Strided convolution with SAME padding, and GELU."""

import math
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from wsfvit.wavelets.reference import compute_dtype

from .cpu_training import DepthwiseConv3x3, trains_on_cpu


@register_notrace_module
class StridedConv2dSame(nn.Conv2d):
    """3x3 convolution of stride 2 that pads like TensorFlow's SAME: (B, C, H, W) -> (B, D, ceil(H / 2), ceil(W / 2)).

    SAME pads an even axis by one only at its end, which `conv2d` does not support. Padding both ends by two gives the
    same values after one extra value, which is cut off: a row and a column of output instead of a copy of the input.
    An odd axis is padded by one at both ends. The result is a view without the extra value; in training on a CPU, where
    a BatchNorm of such a view takes many times as long, it is contiguous.
    """

    def __init__(self, in_chs: int, out_chs: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__(in_chs, out_chs, 3, stride=2, groups=groups, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        padding, (skip_h, skip_w) = self.padding_and_skips(input)
        in_training = trains_on_cpu(input)
        if in_training and self.groups == self.in_channels == self.out_channels:
            arguments = self.weight, self.bias, 2, padding, (skip_h, skip_w)
            return cast(Tensor, DepthwiseConv3x3.apply(input, *arguments))
        x = F.conv2d(input, self.weight, self.bias, self.stride, padding, groups=self.groups)
        x = x[:, :, skip_h:, skip_w:]
        return x.contiguous(memory_format=torch.channels_last) if in_training else x

    def padding_and_skips(self, input: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Padding at both ends of each axis, and number of output values to cut off at its start."""
        skip_h, skip_w = (1 - size % 2 for size in input.shape[2:])
        return (1 + skip_h, 1 + skip_w), (skip_h, skip_w)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """`torch.nn.functional.gelu`, in a form that torch.compile compiles to faster GPU kernels for "tanh".

    Inductor's tanh form needs 33 instructions per element, which takes longer than moving the element; the same
    function written with a sigmoid needs 19.
    """
    if approximate == "tanh" and x.is_cuda and torch.compiler.is_compiling():
        return tanh_gelu_by_sigmoid(x)
    return F.gelu(x, approximate=approximate)


def tanh_gelu_by_sigmoid(x: Tensor) -> Tensor:
    """x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3); any shape, keeps the dtype."""
    z = x.to(compute_dtype(x.dtype))
    return (z * torch.sigmoid(2 * math.sqrt(2 / math.pi) * z * (1 + 0.044715 * z * z))).to(x.dtype)


@register_notrace_module
class GELU(nn.Module):
    """GELU (Hendrycks & Gimpel, 2016), exact or with the tanh approximation; any shape.

    Args:
        approximate: "none" or "tanh".
        inplace: Overwrite the input if gradients are disabled; the caller must own it. One buffer less, which halves
            the time of a large activation on a CPU.
    """

    def __init__(self, approximate: str = "none", inplace: bool = False) -> None:
        super().__init__()
        self.approximate = approximate
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        # torch.jit.trace compares graphs with and without gradients: both must have the same operator.
        if self.inplace and not torch.is_grad_enabled() and not torch.jit.is_tracing():
            return torch.ops.aten.gelu_(x, approximate=self.approximate)
        return gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, inplace={self.inplace}"


TanhGELU = partial(GELU, approximate="tanh")
