"""Faster forms for training on a CPU in float32, where PyTorch's own are slow for the shapes of these models."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function, forward_ad

from .inline import can_inline, is_symbolic

_HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Products from which oneDNN saves more than the call of a Python function costs.
LARGE_LINEAR = 1 << 25
# A stride-1 depthwise weight gradient is faster by sums of products on maps of at most so many pixels.
TINY_MAP = 4


def trains_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is a float32 tensor on a CPU in eager mode with gradients, so that these forms may be used."""
    return (
        torch.is_grad_enabled()
        and not is_symbolic(x)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        # torch.func and forward-mode derivatives take the standard operators.
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``; a large plain `nn.Linear` in training on a CPU is computed by oneDNN: (..., C) -> (..., D)."""
    if _HAS_ONEDNN_LINEAR and can_inline(layer, nn.Linear) and trains_on_cpu(x):
        weight, bias = cast(Tensor, layer.weight), cast(Tensor | None, layer.bias)
        # Other types of tensors, such as quantised weights, bring operators of their own.
        if type(weight) is nn.Parameter and bias is not None and x.numel() * len(weight) >= LARGE_LINEAR:
            return cast(Tensor, OneDNNLinear.apply(x, weight, bias))
    return cast(Tensor, layer(x))


class OneDNNLinear(Function):
    """x W^T + b with oneDNN's product for the output and the gradient of x, 5 to 20 % faster on AMD than MKL's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # oneDNN's operator is not differentiable; F.linear is, for second derivatives.
        product = F.linear if torch.is_grad_enabled() else _product
        rows = grad.flatten(0, -2)
        return (
            product(grad, weight.t(), None) if ctx.needs_input_grad[0] else None,
            rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def depthwise(conv: nn.Module, x: Tensor) -> Tensor:
    """``conv(x)``, (B, C, H, W) -> the same; with another weight gradient on tiny maps in training on a CPU.

    ``conv`` is a depthwise 3x3 convolution with padding 1; anything but a plain `nn.Conv2d` is called.
    """
    if can_inline(conv, nn.Conv2d) and trains_on_cpu(x) and x.shape[2] * x.shape[3] <= TINY_MAP:
        return cast(Tensor, DepthwiseConv3x3.apply(x, conv.weight, conv.bias, 1, (1, 1), (0, 0)))
    return cast(Tensor, conv(x))


class DepthwiseConv3x3(Function):
    """Depthwise 3x3 convolution whose weight gradient is nine sums of products; `apply` takes `forward`'s arguments.

    oneDNN's weight gradient of stride 2, and of stride 1 on maps of up to 2x2 pixels, takes 2 to 100 times as long.
    Derivatives of any order exist.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, C, H, W), channels-last
        weight: Tensor,  # (C, 1, 3, 3)
        bias: Tensor | None,  # (C,)
        stride: int,
        padding: tuple[int, int],
        skips: tuple[int, int],  # rows and columns cut off at the start of the output
    ) -> Tensor:
        """(B, C, h, w), in channels-last memory also where something is cut off."""
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, skips
        y = F.conv2d(x, weight, bias, stride, padding, groups=len(weight))
        return y[:, :, skips[0] :, skips[1] :].contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, skips = ctx.geometry
        grad = grad.contiguous(memory_format=torch.channels_last)
        x_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            whole = F.pad(grad, (skips[1], 0, skips[0], 0)) if any(skips) else grad
            sizes = (stride, stride), padding, (1, 1), False, (0, 0), len(weight)
            x_grad, _, _ = torch.ops.aten.convolution_backward(whole, x, weight, None, *sizes, (True, False, False))
        if ctx.needs_input_grad[1]:
            first = tuple(stride * skip - pad for skip, pad in zip(skips, padding, strict=True))
            weight_grad = _sums_of_products(x, grad, stride, first)
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum((0, 2, 3))
        return x_grad, weight_grad, bias_grad, None, None, None


def _sums_of_products(x: Tensor, grad: Tensor, stride: int, first: tuple[int, ...]) -> Tensor:
    """Weight gradient (C, 1, 3, 3); ``first``: row and column of x under the first weight at the first output."""
    sums = []
    for row in range(3):
        for column in range(3):
            x_rows, rows = _overlap(first[0] + row, x.shape[2], grad.shape[2], stride)
            x_columns, columns = _overlap(first[1] + column, x.shape[3], grad.shape[3], stride)
            sums.append((x[:, :, x_rows, x_columns] * grad[:, :, rows, columns]).sum((0, 2, 3)))
    return torch.stack(sums, 1).view(-1, 1, 3, 3)


def _overlap(first: int, size: int, count: int, stride: int) -> tuple[slice, slice]:
    """Slices of the input axis (``size`` pixels, every ``stride``-th from ``first``) and of its ``count`` outputs."""
    start = -(first // stride) if first < 0 else 0
    stop = min(count, (size - 1 - first) // stride + 1)
    return slice(first + start * stride, first + (stop - 1) * stride + 1, stride), slice(start, stop)
