"""Partitions, position bias, attention kinds, MBConv and stem against their definitions."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsfvit.layers import (
    GELU,
    ChannelAttention,
    Downsample,
    MBConv,
    MultiHeadAttention,
    PublishedHaarSWT2d,
    RelPosBias,
    WaveletStem,
    grid_partition,
    grid_reverse,
    pad_to_multiple,
    padding_mask,
    resize_bias_table,
    window_partition,
    window_reverse,
)
from wsfvit.layers.conv import tanh_gelu_by_sigmoid


def test_window_partition_takes_neighbours() -> None:
    x = torch.arange(24.0).view(1, 4, 6, 1)
    windows = window_partition(x, (2, 3))
    assert windows.shape == (4, 6, 1)
    assert windows[1].flatten().tolist() == [3, 4, 5, 9, 10, 11]


def test_grid_partition_spreads_tokens() -> None:
    x = torch.arange(24.0).view(1, 4, 6, 1)
    groups = grid_partition(x, (2, 3))
    assert groups.shape == (4, 6, 1)
    assert groups[0].flatten().tolist() == [0, 2, 4, 12, 14, 16]


@pytest.mark.parametrize("split, join", [(window_partition, window_reverse), (grid_partition, grid_reverse)])
def test_partition_round_trip(split, join) -> None:  # noqa: ANN001
    x = torch.randn(3, 6, 10, 5)
    assert torch.equal(join(split(x, (3, 2)), (3, 2), (6, 10)), x)
    strided = x.transpose(1, 2)
    assert torch.equal(join(split(strided, (5, 3)), (5, 3), (10, 6)), strided)


@pytest.mark.parametrize("partition", ["window", "grid"])
def test_padding_mask_marks_real_tokens(partition: str) -> None:
    assert padding_mask((6, 8), (3, 4), partition, torch.device("cpu")) is None
    for H in range(1, 12):
        for P in range(1, H + 1):
            mask = padding_mask((H, 7), (P, 3), partition, torch.device("cpu"))
            assert mask is not None and mask.sum() == H * 7
            assert mask.any(dim=1).all(), "a group without a real token"


def test_pad_to_multiple_returns_the_map_itself_where_it_divides() -> None:
    x = torch.randn(1, 6, 8, 2)
    assert pad_to_multiple(x, (3, 4)) is x
    padded = pad_to_multiple(x, (4, 3))
    assert padded.shape == (1, 8, 9, 2) and torch.equal(padded[:, :6, :8], x) and padded[:, 6:].abs().max() == 0


def test_relative_position_bias_is_the_offset_of_key_minus_query() -> None:
    bias = RelPosBias((2, 3), 1)
    with torch.no_grad():
        bias.relative_position_bias_table.copy_(torch.arange(15.0).view(1, 3, 5))
    out = bias()[0]
    for q in range(6):
        for k in range(6):
            row, col = k // 3 - q // 3 + 1, k % 3 - q % 3 + 2
            assert out[q, k] == row * 5 + col


def test_resized_table_keeps_a_constant_and_the_centre() -> None:
    torch.testing.assert_close(resize_bias_table(torch.full((2, 13, 13), 0.3), (12, 4)), torch.full((2, 23, 7), 0.3))
    table = torch.randn(2, 13, 13, dtype=torch.float64)
    resized = resize_bias_table(table, (12, 12))
    assert resized.dtype == torch.float64
    torch.testing.assert_close(resized[:, 11, 11], table[:, 6, 6], rtol=1e-5, atol=1e-5)
    assert torch.equal(resize_bias_table(table, (7, 7)), table)


def explicit_attention(x: Tensor, m: MultiHeadAttention, size: tuple[int, int]) -> Tensor:
    B, N, C = x.shape
    q, k, v = m.qkv(x).view(B, N, 3, m.num_heads, -1).permute(2, 0, 3, 1, 4)
    if m.permute_roles:
        q, k, v = k, v, q
    attn = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + m.rel_pos(size)).softmax(-1)
    return m.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


@pytest.mark.parametrize("permute_roles", [False, True])
def test_attention_is_softmax_attention(permute_roles: bool) -> None:
    m = MultiHeadAttention(16, 8, (2, 3), permute_roles).double()
    nn.init.normal_(m.rel_pos.relative_position_bias_table)
    x = torch.randn(5, 6, 16, dtype=torch.float64)
    torch.testing.assert_close(m(x, (2, 3)), explicit_attention(x, m, (2, 3)))


def test_masked_tokens_are_as_if_absent() -> None:
    m = MultiHeadAttention(16, 8, (2, 3)).double()
    x = torch.randn(4, 6, 16, dtype=torch.float64)  # two images of two groups
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    out = m(x, (2, 3), mask)
    torch.testing.assert_close(out[0::2], m(x[0::2], (2, 3)))
    torch.testing.assert_close(out[1::2, :3], m(x[1::2, :3], (1, 3)))


# Few tokens against channels: by Q, K and V; many: by the tokens' moments.
@pytest.mark.parametrize("size", [(4, 5), (7, 9)])
def test_channel_attention_formula(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    m = ChannelAttention(12, 3).double()
    nn.init.normal_(m.qkv.bias)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    q, k, v = m.qkv(x).view(2, -1, 3, 3, 4).permute(2, 0, 3, 1, 4)
    attn = (k.transpose(-2, -1) @ v / 2).softmax(-1)  # d = 4
    expected = (attn @ q.transpose(-2, -1)).permute(0, 3, 1, 2).reshape(2, *size, 12)
    other = "_attend" if size == (7, 9) else "_attend_by_moments"
    monkeypatch.delattr(ChannelAttention, other)
    torch.testing.assert_close(m(x), m.proj(expected))


@pytest.mark.parametrize("num_subbands", [1, 4])
def test_channel_attention_by_moments_has_the_same_values_and_gradients(num_subbands: int) -> None:
    m = ChannelAttention(6, 2, num_subbands).double()
    x = torch.randn(2 * num_subbands, 5, 8, 6, dtype=torch.float64, requires_grad=True)
    inputs, direction = (x, *m.parameters()), torch.randn_like(x)
    expected, actual = m._attend(x), m._attend_by_moments(x)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(y, inputs, direction) for y in (actual, expected)]
    torch.testing.assert_close(*gradients)
    assert all(g.abs().max() > 1e-6 for g in gradients[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_channel_attention_by_moments_loses_no_precision(dtype: torch.dtype) -> None:
    by_moments, by_qkv = torch.zeros(2, dtype=torch.float64)
    for seed in range(20):  # a softmax near a tie errs much, either way: so many layers together
        torch.manual_seed(seed)
        m = ChannelAttention(16, 2)
        nn.init.normal_(m.qkv.weight, std=0.1)
        x = F.layer_norm(torch.randn(2, 24, 24, 16) @ torch.randn(16, 16), (16,))
        with torch.no_grad():
            exact = copy.deepcopy(m).double()._attend(x.double())
            with torch.autocast("cpu", dtype):
                by_moments += (m._attend_by_moments(x) - exact).square().mean() / exact.square().mean()
                by_qkv += (m._attend(x) - exact).square().mean() / exact.square().mean()
    assert by_moments < by_qkv


def test_channel_attention_by_moments_of_many_tokens_in_float16() -> None:
    m = ChannelAttention(4, 1)
    x = F.layer_norm(torch.randn(1, 320, 320, 4), (4,))
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert m(x).isfinite().all()  # a sum over 102,400 tokens would pass 65,504


class Adapted(nn.Linear):
    """Stands for an adapter: the same weights, another result."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_a_replaced_projection_is_called() -> None:
    attention = ChannelAttention(4, 1)
    x = torch.randn(1, 8, 8, 4)
    with torch.no_grad():
        before = attention(x)
        adapted = Adapted(4, 4)
        adapted.load_state_dict(attention.proj.state_dict())
        attention.proj = adapted
        torch.testing.assert_close(attention(x), before + 1)


def test_hooks_see_the_modules() -> None:
    conv = MBConv(4, 4).eval()
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        before = conv(x)
        called: list[nn.Module] = []
        for part in (conv.se, conv.conv3_1x1):
            part.register_forward_hook(lambda module, *_: called.append(module))
            torch.testing.assert_close(conv(x), before)
    assert called == [conv.se, conv.se, conv.conv3_1x1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gates_on_the_weights_have_the_same_values_and_gradients(layout: torch.memory_format) -> None:
    m = MBConv(4, 4).double()
    x = torch.randn(3, 16, 5, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    inputs = (x, *m.se.parameters(), *m.conv3_1x1.parameters())
    actual, expected = m._gate_and_project(x), m.conv3_1x1(m.se(x))
    torch.testing.assert_close(actual, expected)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, inputs, direction) for y in (actual, expected)))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1)])
def test_downsample_averages_the_pixels_that_exist(size: tuple[int, int]) -> None:
    out = Downsample(3, 3)(torch.ones(1, 3, *size))
    assert out.shape == (1, 3, -(-size[0] // 2), -(-size[1] // 2))
    torch.testing.assert_close(out, torch.ones_like(out))


@pytest.mark.parametrize("in_chs, stride", [(8, 1), (8, 2), (6, 1), (6, 2)])
def test_mbconv_shapes(in_chs: int, stride: int) -> None:
    block = MBConv(in_chs, 8, stride)
    assert block(torch.randn(2, in_chs, 9, 6)).shape == (2, 8, -(-9 // stride), 6 // stride)
    assert isinstance(block.shortcut, nn.Identity) == (in_chs == 8 and stride == 1)


def published_subbands(x: Tensor) -> Tensor:
    """The stem's transform written from its definition, pixel by pixel."""
    _, _, H, W = x.shape
    wraps = H == W and H in (1, 2, 4, 8, 16, 32)
    x = torch.cat((x, x[..., :1, :]), 2) if wraps else F.pad(x, (0, 0, 0, 1))
    x = torch.cat((x, x[..., :1]), 3) if wraps else F.pad(x, (0, 1))
    a, b, c, d = x[..., :-1, :-1], x[..., :-1, 1:], x[..., 1:, :-1], x[..., 1:, 1:]
    bands = [(a + b + c + d) / 2, (c + d - a - b) / 2, (b + d - a - c) / 2, (a - b - c + d) / 2]
    return torch.cat(bands, 1)


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 24), (32, 16), (16, 32), (7, 5)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_published_signs_and_border(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format)
    torch.testing.assert_close(PublishedHaarSWT2d().double()(x), published_subbands(x))


def test_stem_has_a_gradient_to_the_image_and_published_buffers() -> None:
    stem = WaveletStem(1, 4).double().eval()
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stem, x)
    a = 0.5**0.5
    assert stem.dwt_l2.w_l.tolist() == [[pytest.approx(a), pytest.approx(a)]]
    assert stem.dwt_l2.w_h.tolist() == [[pytest.approx(a), pytest.approx(-a)]]


def test_gelu_with_a_sigmoid_is_the_one_with_tanh() -> None:
    """What compiled models compute on a GPU: in float64 the same, in less within twice the error of torch's."""

    def value_and_gradient(function: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-12, 12, 4001, dtype=torch.float64).bfloat16().to(dtype).requires_grad_()
        y = function(x)
        assert y.dtype == dtype
        return y, torch.autograd.grad(y.sum(), x)[0]

    plain = partial(F.gelu, approximate="tanh")
    exact = value_and_gradient(plain, torch.float64)
    torch.testing.assert_close(value_and_gradient(tanh_gelu_by_sigmoid, torch.float64), exact, rtol=2e-15, atol=1e-14)
    for dtype in (torch.float32, torch.bfloat16):
        errors = [
            [(each.double() - y).abs().max() for each, y in zip(value_and_gradient(gelu, dtype), exact, strict=True)]
            for gelu in (tanh_gelu_by_sigmoid, plain)
        ]
        assert all(ours <= 2 * theirs for ours, theirs in zip(*errors, strict=True)), errors


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inplace_gelu_passes_the_check_of_a_trace() -> None:
    """torch.jit.trace makes one graph with gradients and compares it with one made without."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), GELU(inplace=True)), torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
