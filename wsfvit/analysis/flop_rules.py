"""Cost of every operator: the rules that `wsfvit.analysis.flop_counter` looks up by name.

The convention is fvcore's, by which the published figures were counted: one multiply-accumulate (MAC) of a convolution,
a linear layer or a matrix product counts 1, and so does the attention's softmax(Q K^T) V, fused or not, with its two
products. Norms count 2 (batch norm) or 5 (layer and group norm) MACs per element, 1 less without an affine part. What
fvcore leaves out is either arithmetic outside the MACs (`Cost.other`, in floating-point operations), as are pooling and
interpolation here, of which fvcore puts some among the MACs, or data movement, which costs nothing.

An operator without a rule is an error. Rules can be added from outside::

    @register_flop_rule("mylib::my_product")
    def my_product(inputs, output):
        return Cost(macs=output.numel() * inputs[0].shape[-1], activations=output.numel())
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Cost:
    """Cost of one or several operators."""

    macs: int = 0  # multiply-accumulates
    activations: int = 0  # output elements of convolutions, linear layers, matrix products and fused attention
    # Floating-point operations outside ``macs``: elementwise arithmetic (1 per output element for every function; a
    # softmax 5), reductions and pooling (1 per element read), interpolation, the additions of a Haar transform.
    other: int = 0

    def __add__(self, more: "Cost") -> "Cost":
        return Cost(self.macs + more.macs, self.activations + more.activations, self.other + more.other)


FREE = Cost()
# From the operator's positional arguments (those left out have their defaults) and its result.
Rule = Callable[[Sequence[Any], Any], Cost]
RULES: dict[str, Rule] = {}


def register_flop_rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator that registers a cost rule for the operators called ``names`` ("aten::mm"), replacing existing ones.

    The rule receives the operator's arguments in the order of its schema and its result, and returns a `Cost`.
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def find_rule(operator: Any) -> Rule | None:
    """The rule of an operator: its own, or that of all elementwise operators, or that of all views."""
    name = operator._schema.name
    own = RULES.get(name) or RULES.get(name.removesuffix("_"))  # aten::gelu_ is aten::gelu in place
    if own is not None:
        return own
    if torch.Tag.pointwise in operator.tags:
        return elementwise
    return _free if operator.is_view else None


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Cost:
    """Cost of softmax(Q K^T) V: queries (..., N, d), keys (..., M, d), values (..., M, e) take (...) N M (d + e) MACs.

    The scale, the softmax and a mask are elementwise: 1 + 5 + 1 operations per entry of Q K^T.
    """
    *batch, tokens, width = query.shape
    entries = math.prod(batch) * tokens * key.shape[-2]
    out = math.prod(batch) * tokens * value.shape[-1]
    return Cost(macs=entries * (width + value.shape[-1]), activations=out, other=7 * entries)


def _numel(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * (2 if value.is_complex() else 1)
    return sum(map(_numel, value)) if isinstance(value, (list, tuple)) else 0


def _product(output: torch.Tensor, depth: int) -> Cost:
    """Every output element sums ``depth`` products; a complex product is four real ones."""
    return Cost(macs=output.numel() * depth * (4 if output.is_complex() else 1), activations=_numel(output))


@register_flop_rule("aten::convolution", "aten::cudnn_convolution", "aten::mkldnn_convolution")
def _convolution(inputs: Sequence[Any], output: Any) -> Cost:
    image, weight, transposed = inputs[0], inputs[1], len(inputs) == 9 and inputs[6]
    taps = weight[0].numel()  # products per output element (transposed: per input element)
    macs = (image if transposed else output).numel() * taps
    return Cost(macs=macs, activations=_numel(output))


@register_flop_rule("aten::native_layer_norm", "aten::native_group_norm")
def _layer_or_group_norm(inputs: Sequence[Any], output: Any) -> Cost:
    weight = inputs[2] if len(inputs) == 5 else inputs[1]  # layer norm has the normalized shape before it
    return Cost(macs=_numel(inputs[0]) * (5 if weight is not None else 4))


@register_flop_rule("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm")
def _batch_norm(inputs: Sequence[Any], output: Any) -> Cost:
    # With the statistics of the batch (instance norm) it costs what a layer norm does; else one scale and one shift.
    affine, training = inputs[1] is not None, inputs[5]
    return Cost(macs=_numel(inputs[0]) * ((4 if training else 1) + affine))


@register_flop_rule("aten::avg_pool2d", "aten::max_pool2d_with_indices")
def _pool2d(inputs: Sequence[Any], output: Any) -> Cost:
    window = math.prod(inputs[1]) if len(inputs[1]) == 2 else inputs[1][0] ** 2
    return Cost(other=_numel(output[0] if isinstance(output, tuple) else output) * window)


@register_flop_rule("aten::_fft_r2c", "aten::_fft_c2r", "aten::_fft_c2c")
def _fft(inputs: Sequence[Any], output: Any) -> Cost:
    """5 n log2 n operations for n complex values, half of it for real ones (Cooley and Tukey); not counted as MACs."""
    signal = output if inputs[0].is_complex() and not output.is_complex() else inputs[0]
    points = math.prod(signal.shape[axis] for axis in inputs[1])
    real = not (inputs[0].is_complex() and output.is_complex())
    return Cost(other=round(5 * signal.numel() * math.log2(points)) // (2 if real else 1))


@register_flop_rule("torchvision::roi_align")
def _roi_align(inputs: Sequence[Any], output: Any) -> Cost:
    """4 products and 4 additions per bilinear sample, and each bin averages its samples.

    With a sampling ratio of 0 a bin of h x w cells of the map takes ceil(h) x ceil(w) samples (He et al., 2017); on the
    meta device, where RoIs have no values, 2 x 2.
    """
    image, rois, scale, height, width, ratio, aligned = inputs
    if ratio > 0 or rois.is_meta:
        samples = output.numel() * (ratio if ratio > 0 else 2) ** 2
    else:
        sides = (rois[:, 3:] - rois[:, 1:3]) * scale
        bins = (sides if aligned else sides.clamp(min=1)) / sides.new_tensor([width, height])
        samples = int(bins.ceil().clamp(min=0).prod(dim=1).sum()) * height * width * image.shape[1]
    return Cost(other=9 * samples)


@register_flop_rule("torchvision::nms")
def _nms(inputs: Sequence[Any], output: Any) -> Cost:
    """The overlap of every pair of N boxes, at most: 14 operations for each of the N (N - 1) / 2."""
    number = len(inputs[0])
    return Cost(other=7 * number * (number - 1))


def _per_element(times: int, read: bool = False) -> Rule:
    """``times`` operations for each element that is written, or read."""
    return lambda inputs, output: Cost(other=times * _numel(inputs[0] if read else output))


elementwise, _free = _per_element(1), _per_element(0)
_RULES: Mapping[Rule, str] = {
    lambda inputs, output: _product(output, inputs[0].shape[-1]): "mm bmm _scaled_mm",
    lambda inputs, output: _product(output, inputs[1].shape[-1]): "addmm baddbmm",
    lambda inputs, output: Cost(macs=_numel(inputs[0]), activations=_numel(output)): "mv dot vdot",
    lambda inputs, output: Cost(macs=max(map(_numel, inputs[1:3])), activations=_numel(output)): "addmv addr",
    lambda inputs, output: attention(*inputs[:3]): "_scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable",
    elementwise: "gelu silu hardswish hardtanh leaky_relu mish elu celu rrelu glu renorm addcmul index_add scatter_add",
    _per_element(5): "_softmax _safe_softmax _log_softmax",
    _per_element(8): "upsample_bilinear2d _upsample_bilinear2d_aa",  # 4 taps, each a product and an addition
    _per_element(32): "upsample_bicubic2d _upsample_bicubic2d_aa",  # 16 taps
    _per_element(1, read=True): "mean sum amax amin aminmax max min argmax argmin prod any all cumsum count_nonzero "
    "col2im _adaptive_avg_pool2d adaptive_max_pool2d mkldnn_adaptive_avg_pool2d",
    _per_element(2, read=True): "linalg_vector_norm norm logsumexp",
    _per_element(3, read=True): "var std var_mean std_mean",
    _per_element(4, read=True): "_fused_rms_norm",
    # Data movement and bookkeeping. Views and what PyTorch itself marks as a view need not be named.
    _free: """
    alias arange as_strided bernoulli bucketize cat clone complex constant_pad_nd copy detach diag_embed embedding empty
    empty_like empty_permuted empty_strided eye fill flip full full_like gather im2col index index_copy index_fill
    index_put index_select lift_fresh lift_fresh_copy linspace masked_fill masked_select new_empty new_empty_strided
    new_full new_ones new_zeros nonzero ones ones_like pixel_shuffle pixel_unshuffle channel_shuffle rand randn randperm
    reflection_pad1d reflection_pad2d repeat repeat_interleave replication_pad1d replication_pad2d resize roll
    scalar_tensor scatter searchsorted set slice_scatter sort split_with_sizes_copy stack topk tril triu unfold
    unfold_copy unsafe_chunk unsafe_split upsample_nearest2d _upsample_nearest_exact2d where zero zeros zeros_like
    _local_scalar_dense _unique2 _reshape_alias _reshape_copy _to_copy _unsafe_index _unsafe_view native_dropout
""",
}
for _rule, _names in _RULES.items():
    register_flop_rule(*(f"aten::{name}" for name in _names.split()))(_rule)
