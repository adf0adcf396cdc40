"""The forms for training on a CPU: values and derivatives of PyTorch's operators, only where they apply."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsfvit.layers import MBConv, StridedConv2dSame, WaveletStem, mbconv
from wsfvit.layers.attention import MultiHeadAttention
from wsfvit.layers.cpu_training import LARGE_LINEAR, DepthwiseConv3x3, OneDNNLinear, depthwise, linear

SIZES = [(1, 1), (1, 2), (2, 2), (4, 1), (7, 7), (8, 6), (9, 4), (2, 1)]


def conv_and_plain(stride: int, bias: bool) -> tuple[nn.Conv2d, nn.Module]:
    """A depthwise convolution of this package, and PyTorch's operators in float64 with the same weights."""
    torch.manual_seed(0)
    strided = StridedConv2dSame(5, 5, groups=5, bias=bias)
    conv = strided if stride == 2 else nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=bias)
    return conv, copy.deepcopy(conv).double()


def grads_of(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum() + y.sum(), [x, *module.parameters()])]


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_depthwise_convolution_has_the_gradients_of_the_plain_one(size, stride, bias):
    conv, plain = conv_and_plain(stride, bias)
    x = channels_last(3, 5, *size)
    # The plain one runs in float64, for which there is no other form.
    for got, want in zip(grads_of(partial(depthwise, conv), x, conv), grads_of(plain, x.double(), plain), strict=True):
        torch.testing.assert_close(got, want.float(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("stride", "padding", "skips"), [(1, (1, 1), (0, 0)), (2, (2, 1), (1, 0)), (2, (2, 2), (1, 1))]
)
def test_first_and_second_derivatives_by_finite_differences(stride, padding, skips):
    x, weight = channels_last(2, 2, 4, 5).double(), channels_last(2, 1, 3, 3).double()
    bias = torch.randn(2, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]

    def apply(*tensors: Tensor) -> Tensor:
        return DepthwiseConv3x3.apply(*tensors, stride, padding, skips)

    assert torch.autograd.gradcheck(apply, leaves)
    assert torch.autograd.gradgradcheck(apply, leaves)


def test_only_what_needs_a_gradient_gets_one():
    conv, _ = conv_and_plain(2, bias=True)
    conv.weight.requires_grad_(False)
    conv(channels_last(1, 5, 6, 6)).sum().backward()
    assert conv.weight.grad is None
    assert conv.bias.grad is not None


def test_strided_result_is_a_view_in_inference_and_contiguous_in_training():
    for groups in (1, 4):
        conv = StridedConv2dSame(4, 4, groups=groups).to(memory_format=torch.channels_last)
        x = channels_last(2, 4, 8, 8)
        assert conv(x).is_contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            view = conv(x)
        assert not view.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(conv(x), view)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_large_linear_layer_has_the_derivatives_of_the_plain_one():
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 512), torch.randn(2, 256, 128)
    assert x.numel() * 512 == LARGE_LINEAR
    assert isinstance(linear(layer, x).grad_fn, OneDNNLinear._backward_cls)
    for got, want in zip(grads_of(partial(linear, layer), x, layer), grads_of(layer, x, layer), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-3)

    def second(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(leaf).square().mean(), leaf, create_graph=True)
        return list(torch.autograd.grad(grad.square().sum(), [leaf, layer.weight]))

    for got, want in zip(second(partial(linear, layer)), second(layer), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_linear_layers_with_hooks_and_small_ones_are_called():
    layer = nn.Linear(128, 512)
    assert not isinstance(linear(layer, torch.randn(1, 255, 128)).grad_fn, OneDNNLinear._backward_cls)
    seen = []
    layer.register_forward_hook(lambda *arguments: seen.append(1))
    linear(layer, torch.randn(1, 512, 128))
    assert seen == [1]


@pytest.mark.parametrize("permute_roles", [False, True])
def test_attention_in_training_equals_inference(permute_roles):
    torch.manual_seed(0)
    attn = MultiHeadAttention(32, 8, (3, 3), permute_roles)
    x = torch.randn(4, 9, 32)
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    for kwargs in ({}, {"mask": mask}):
        with torch.no_grad():
            want = attn(x, (3, 3), **kwargs)
        torch.testing.assert_close(attn(x, (3, 3), **kwargs), want)


def test_gradient_of_the_stem_has_the_layout_of_its_gelu_input():
    stem = WaveletStem(3, 8)
    layouts = []
    stem.norm1.act.register_full_backward_hook(lambda module, inputs, outputs: layouts.append(outputs[0].stride()))
    stem(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert layouts == [(12 * 32 * 32, 32 * 32, 32, 1)]


def test_other_transforms_take_the_standard_operators():
    conv, _ = conv_and_plain(2, bias=True)
    x, tangent = channels_last(3, 5, 6, 6), channels_last(3, 5, 6, 6)
    weights = dict(conv.named_parameters())

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(conv, weights, (image[None],)).square().sum()

    per_image = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    (whole,) = torch.autograd.grad(conv(x).square().sum(), [conv.weight])
    torch.testing.assert_close(per_image["weight"].sum(0), whole, rtol=1e-4, atol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = conv(torch.autograd.forward_ad.make_dual(x, tangent))
        got = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(got, F.conv2d(tangent, conv.weight, None, 2, 2, groups=5)[:, :, 1:, 1:])


def test_a_few_images_at_a_time_in_inference_only(monkeypatch):
    block, x = MBConv(8, 16, 2).eval(), channels_last(5, 8, 12, 10)
    seen = []
    original = block._expand
    monkeypatch.setattr(block, "_expand", lambda part: (seen.append(len(part)), original(part))[1])
    with torch.no_grad():
        want = block(x)
        assert seen == [5]
        monkeypatch.setattr(mbconv, "LARGEST_MAP", 2 * 64 * 12 * 10 * 4)
        got = block(x)
        assert seen == [5, 2, 2, 1] and got.stride() == want.stride()
        torch.testing.assert_close(got, want)
        monkeypatch.setattr(mbconv, "LARGEST_MAP", 1)
        torch.testing.assert_close(block(x), want)
        assert seen[4:] == [1] * 5
        block.norm1.act.register_forward_hook(lambda *arguments: None)
        block(x)
        assert seen[9:] == [5]
        block.norm1.act._forward_hooks.clear()
        block.train()(x)
        block.eval()
    block(x)
    assert seen[10:] == [5, 5]
