"""Fusion for inference: BatchNorm folded into convolutions, GELU fused with the layer before it."""

import copy
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Mlp
from torch import Tensor, nn

from wsfvit.layers import (
    GELU,
    ConvPosEnc,
    InterSubbandAttention,
    MBConv,
    MultiHeadAttention,
    StridedConv2dSame,
    WaveletStem,
    to_nchw,
    to_nhwc,
)
from wsfvit.layers.conv import gelu
from wsfvit.layers.inline import can_inline
from wsfvit.layers.stem import PublishedHaarSWT2d
from wsfvit.wavelets import resolve_backend, wavelet_backend
from wsfvit.wavelets.backend import kernels_were_selected
from wsfvit.wavelets.triton.stem_operator import haar_swt2d_affine_gelu

_HAS_FUSED_OPERATORS = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_convolution_pointwise")
)


def can_fuse(model: nn.Module) -> bool:
    """Whether a model has modules that `fuse_for_inference` changes."""
    return any(isinstance(module, MBConv | WaveletStem) or _is_gelu_mlp(module) for module in model.modules())


def fuse_for_inference(model: nn.Module) -> nn.Module:
    """Copies a model and fuses layers of the copy for inference; outputs are equal up to rounding.

    In evaluation a BatchNorm is a factor and a summand per channel. They are folded into the convolution before it (in
    an MBConv's pre-norm, into the 1x1 convolution after it); the stem's transform and its BatchNorm become one
    convolution, and a positional encoding's sum with its input part of its convolution. On a CPU in float32, where a
    separate GELU takes a fifth of the model's time, GELU is fused with the convolution or linear layer before it, and
    oneDNN computes the other linear layers of local and global attention and of the MLPs; on a GPU only the tanh form
    after 1x1 convolutions and linear layers is fused (not measured).

    Args:
        model: A model with `WaveletStem`, `MBConv` or timm's `Mlp`; other modules are copied unchanged.

    Returns:
        The copy, in evaluation mode, where it must stay, and without gradients. Its state-dict keys differ: load
        weights before fusing.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, MBConv):
            _fold_into_next(module.pre_norm, module.conv1_1x1)
            module.pre_norm = nn.Identity()
            _fuse_conv(module, "conv1_1x1", "norm1")
            _fuse_conv(module, "conv2_kxk", "norm2")
        elif isinstance(module, WaveletStem):
            _fuse_transform(module)
            _fuse_conv(module, "conv1", "norm2")
            _fuse_conv(module, "conv2", "norm3")
        elif isinstance(module, InterSubbandAttention):
            module.cpe = nn.ModuleList(map(_with_identity, module.cpe))
        elif isinstance(module, MultiHeadAttention):
            _fuse_linear(module, "qkv")
            _fuse_linear(module, "proj")
        elif _is_gelu_mlp(module):
            module.fc1, module.act = FusedLinear(module.fc1, module.act.approximate), nn.Identity()
            _fuse_linear(module, "fc2")
    return model


class ConvGELU(nn.Module):
    """GELU(conv(x)): (B, C, H, W) -> (B, D, h, w)."""

    def __init__(self, conv: nn.Conv2d, approximate: str) -> None:
        super().__init__()
        self.conv = conv
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1)
        if pointwise and conv.bias is not None and _has_gelu_epilogue(x, self.approximate):
            return to_nchw(_linear_gelu(to_nhwc(x), conv.weight.flatten(1), conv.bias))
        if not _has_fused_operators(x):
            return gelu(conv(x), self.approximate)
        padding, (skip_h, skip_w) = conv.padding, (0, 0)
        if isinstance(conv, StridedConv2dSame):
            padding, (skip_h, skip_w) = conv.padding_and_skips(x)
        x = torch.ops.mkldnn._convolution_pointwise(
            x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups, "gelu", [], self.approximate
        )
        # A view with gaps between its rows is so slow to average in squeeze-excite that the copy pays.
        return x[:, :, skip_h:, skip_w:].contiguous(memory_format=torch.channels_last) if skip_h or skip_w else x


class SubbandsGELU(nn.Module):
    """GELU(BatchNorm(subbands)) of the stem's transform: (B, C, H, W) -> (B, 4 * C, H, W), channels-last.

    On a CPU one 2x2 convolution. On a GPU the transform with a factor and a summand per channel, or one Triton kernel
    where the wavelet backend is "triton", the images are RGB and the GELU is the tanh form.
    """

    factor: Tensor  # (4 * C, 1, 1)
    summand: Tensor  # (4 * C, 1, 1)
    first_weight: Tensor  # (4 * C,), weight of a block's first pixel in its own channel

    def __init__(self, transform: PublishedHaarSWT2d, norm: BatchNormAct2d, approximate: str) -> None:
        super().__init__()
        factor, summand = _factor_and_summand(norm)
        C = len(factor) // 4
        # The transform of unit pixels gives the weights; without kernels, for the model may not be on a GPU yet.
        pixels = torch.eye(4 * C, dtype=factor.dtype, device=factor.device).view(4 * C, C, 2, 2)
        with wavelet_backend("reference"):
            subbands = transform(pixels)[:, :, 0, 0]
        weight = subbands.t().reshape(4 * C, C, 2, 2) * factor.view(-1, 1, 1, 1)
        like = norm.weight
        conv: Any = nn.Conv2d(C, 4 * C, 2, device=like.device, dtype=like.dtype)
        conv.to(memory_format=torch.channels_last)
        _set_weights(conv, weight, summand)
        self.conv = ConvGELU(conv, approximate)
        self.transform = transform
        self.register_buffer("factor", factor.to(like.dtype).view(-1, 1, 1))
        self.register_buffer("summand", summand.to(like.dtype).view(-1, 1, 1))
        self.register_buffer("first_weight", weight[:, :, 0, 0].sum(1).to(like.dtype))  # zero in other channels

    def forward(self, x: Tensor) -> Tensor:
        approximate, wraps = self.conv.approximate, self.transform.wraps(x)
        if _has_stem_kernel(x, approximate):
            return haar_swt2d_affine_gelu(x, self.first_weight, self.summand.flatten(), wraps, _autocast_dtype(x))
        if x.device.type == "cuda":
            x = gelu(torch.addcmul(self.summand, self.transform(x), self.factor), approximate)
        else:
            x = F.pad(x, (0, 1, 0, 1), "circular" if wraps else "constant")
            x = self.conv(x.contiguous(memory_format=torch.channels_last))
        return x.contiguous(memory_format=torch.channels_last)


class FusedLinear(nn.Module):
    """linear(x), and GELU of that unless ``approximate`` is None: (..., C) -> (..., D)."""

    def __init__(self, linear: nn.Linear, approximate: str | None) -> None:
        super().__init__()
        self.linear = linear
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, approximate = self.linear.weight, self.linear.bias, self.approximate
        if _has_fused_operators(x):
            act = "none" if approximate is None else "gelu"
            return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, act, [], approximate or ""))
        if approximate is None:
            return cast(Tensor, self.linear(x))
        if bias is not None and _has_gelu_epilogue(x, approximate):
            return _linear_gelu(x, weight, bias)
        return gelu(self.linear(x), approximate)


def _has_fused_operators(x: Tensor) -> bool:
    """Whether oneDNN's operators with an activation, which torch.compile uses on a CPU, support ``x``."""
    return (
        _HAS_FUSED_OPERATORS
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        # Compilers do their own fusion.
        and not torch.compiler.is_compiling()
    )


def _has_gelu_epilogue(x: Tensor, approximate: str) -> bool:
    """Whether cuBLASLt can fuse GELU(x W^T + b): on a GPU, in the tanh form, without gradients."""
    return x.device.type == "cuda" and approximate == "tanh" and _allows_custom_operators()


def _has_stem_kernel(x: Tensor, approximate: str) -> bool:
    """Whether a Triton kernel can compute `SubbandsGELU`."""
    fits = x.shape[1] == 3 and x.dtype != torch.float64 and approximate == "tanh"
    # Beside inductor's own kernels it has not been measured.
    selected = kernels_were_selected() or not torch.compiler.is_compiling()
    return fits and selected and _allows_custom_operators() and resolve_backend(x.device) == "triton"


def _allows_custom_operators() -> bool:
    """Whether operators without a gradient may run; exported graphs must contain only standard ones.

    torch.compile supports them (Dynamo sees `is_exporting` as true).
    """
    return not torch.is_grad_enabled() and (torch.compiler.is_dynamo_compiling() or not torch.compiler.is_exporting())


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(x W^T + b) in the tanh form, on a GPU: (..., C), (D, C), (D,) -> (..., D)."""
    dtype = _autocast_dtype(x)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    y = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return y.unflatten(0, x.shape[:-1])


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """Dtype of a matrix product's input under autocast; without autocast, that of the input."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _is_gelu_mlp(module: nn.Module) -> TypeGuard[Mlp]:
    return isinstance(module, Mlp) and isinstance(module.act, GELU) and isinstance(module.fc1, nn.Linear)


def _with_identity(encoding: nn.Module) -> nn.Conv2d:
    """The depthwise convolution of a `ConvPosEnc` with the sum x + conv(x) in its weights."""
    conv = cast(ConvPosEnc, encoding).proj
    conv.weight[:, :, 1, 1] += 1
    return conv


def _fuse_linear(module: nn.Module, name: str) -> None:
    """Lets oneDNN compute a linear layer, if it is exactly one."""
    linear = getattr(module, name)
    if can_inline(linear, nn.Linear):
        setattr(module, name, FusedLinear(linear, None))


def _fuse_conv(module: nn.Module, conv_name: str, norm_name: str) -> None:
    """Folds a BatchNorm into the convolution before it, and fuses the activation after both if it is a GELU."""
    conv, norm = cast(nn.Conv2d, getattr(module, conv_name)), cast(BatchNormAct2d, getattr(module, norm_name))
    scale, shift = _factor_and_summand(norm)
    bias = shift if conv.bias is None else conv.bias.double() * scale + shift
    _set_weights(conv, conv.weight.double() * scale[:, None, None, None], bias)
    if isinstance(norm.act, GELU):
        setattr(module, conv_name, ConvGELU(conv, norm.act.approximate))
        setattr(module, norm_name, nn.Identity())
    else:
        setattr(module, norm_name, norm.act)


def _fuse_transform(stem: WaveletStem) -> None:
    """Replaces a stem's transform, BatchNorm and activation by one module, if the activation is a GELU."""
    norm = cast(BatchNormAct2d, stem.norm1)
    if isinstance(norm.act, GELU):
        stem.dwt_l2 = SubbandsGELU(cast(PublishedHaarSWT2d, stem.dwt_l2), norm, norm.act.approximate)
        stem.norm1 = nn.Identity()


def _fold_into_next(norm: BatchNormAct2d, conv: nn.Conv2d) -> None:
    """Folds a BatchNorm without activation into the 1x1 convolution after it, which has no bias."""
    scale, shift = _factor_and_summand(norm)
    weight = conv.weight.double()
    _set_weights(conv, weight * scale[None, :, None, None], weight.flatten(1) @ shift)


def _factor_and_summand(norm: BatchNormAct2d) -> tuple[Tensor, Tensor]:
    """Factor and summand per channel of a BatchNorm in evaluation, in float64."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _set_weights(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    like = conv.weight
    layout = torch.channels_last if like.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    conv.weight = nn.Parameter(weight.to(like.dtype).contiguous(memory_format=layout), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(like.dtype), requires_grad=False)
