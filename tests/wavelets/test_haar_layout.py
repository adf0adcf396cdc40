"""The Haar operators in their surroundings: strides, memory layout, compiler, export, autocast."""

import operator

import pytest
import torch
from wavelets.haar_oracles import Op, normal

from wsfvit.wavelets import haar_dwt2d, haar_idwt2d

SIZES = [(4, 6), (5, 7)]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("size", SIZES)
def test_noncontiguous(op: Op, device, dtype, size):
    x = normal(op.input_shape(2, 3, *size), device, dtype)
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), device=device, dtype=dtype)
    wide[..., ::2] = x
    sliced, transposed = wide[..., ::2], x.mT.contiguous().mT
    reversed_axes = x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
    for strided in (sliced, transposed, reversed_axes):
        assert not strided.is_contiguous()
        y = op.function(strided)
        assert torch.equal(y, op.function(x)) and y.is_contiguous()
    expanded = x[:1].expand_as(x)
    assert torch.equal(op.function(expanded), op.function(expanded.contiguous()))


@pytest.mark.parametrize("size", SIZES)
def test_channels_last(op: Op, device, dtype, size):
    x = normal(op.input_shape(2, 3, *size), device, dtype)
    plain, inside = op.function(x), op.function(op.channels_last(x))
    assert torch.equal(inside, plain)
    if op.inverse:
        assert inside.is_contiguous(memory_format=torch.channels_last)
        return
    if op.decimated:
        assert inside.permute(0, 1, 3, 4, 2).is_contiguous()
        folded = inside.flatten(0, 1)
    else:
        assert inside.permute(0, 3, 4, 1, 2).is_contiguous()
        folded = inside.flatten(1, 2)
    assert folded.data_ptr() == inside.data_ptr()
    assert folded.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_gradient(op: Op, device):
    x = op.channels_last(normal(op.input_shape(2, 3, 4, 6), device)).requires_grad_()
    y = op.function(x)
    weight = torch.empty_like(y).copy_(normal(tuple(y.shape), device))
    (back,) = torch.autograd.grad(y, x, weight)
    assert weight.stride() == y.stride() and back.stride() == x.stride()
    (plain,) = torch.autograd.grad(op.function(x.contiguous()), x, weight.contiguous())
    assert torch.equal(back, plain)


@pytest.mark.parametrize("size", SIZES)
def test_autocast(op: Op, device, dtype, size):
    x = normal(op.input_shape(2, 3, *size), device, dtype).requires_grad_()
    y = op.function(x)
    weight = torch.randn_like(y)
    (back,) = torch.autograd.grad(y, x, weight)
    for low in (torch.bfloat16, torch.float16):
        with torch.autocast(device.type, dtype=low):
            inside = op.function(x)
            (back_inside,) = torch.autograd.grad(inside, x, weight)
        assert inside.dtype == back_inside.dtype == dtype
        assert torch.equal(inside, y) and torch.equal(back_inside, back)


def test_compile(op: Op, device, fresh_compiler, assert_close):
    """One graph, forward and backward, both layouts, sizes that change from call to call."""
    compiled = torch.compile(op.function, fullgraph=True, backend="aot_eager")
    for size in ((4, 6), (5, 7)):
        for channels_last in (False, True):
            x = normal(op.input_shape(2, 3, *size), device)
            x = (op.channels_last(x) if channels_last else x).requires_grad_()
            expected, y = op.function(x), compiled(x)
            assert_close(y, expected)
            assert y.stride() == expected.stride()
            weight = torch.randn_like(expected)
            (back,) = torch.autograd.grad(y, x, weight)
            assert_close(back, torch.autograd.grad(expected, x, weight)[0])


def test_compile_dynamic(op: Op, device, fresh_compiler, assert_close):
    """Marked dynamic, one graph serves all sizes of one parity."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op.function, fullgraph=True, backend=counter, dynamic=True)
    # No axis of the first call is as long as another: the compiler would take them for one and the same.
    for size in ((6, 10), (8, 12), (14, 8)):
        x = normal(op.input_shape(2, 3, *size), device)
        assert_close(compiled(x), op.function(x))
    assert counter.frame_count == 1


def test_compile_inductor(device, fresh_compiler, assert_close):
    def round_trip(x: torch.Tensor) -> torch.Tensor:
        return haar_idwt2d(haar_dwt2d(x) * 2, x.shape[-2:])

    x = normal((2, 3, 5, 6), device, torch.float32)
    assert_close(torch.compile(round_trip, fullgraph=True)(x), 2 * x)


class Wrapped(torch.nn.Module):
    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op.function(x)


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
@pytest.mark.parametrize("size", SIZES)
def test_export(op: Op, device, size, strict, assert_close):
    x = normal(op.input_shape(2, 3, *size), device, torch.float32)
    exported = torch.export.export(Wrapped(op), (x,), strict=strict)
    for node in exported.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            assert node.target.namespace == "aten", node.target
    # The eager form may add in another order.
    assert_close(exported.module()(x), op.function(x))


def test_export_dynamic(op: Op, device, assert_close):
    """The batch is free; height and width keep their parity."""
    x = normal(op.input_shape(2, 3, 4, 6), device, torch.float32)
    dims = {0: torch.export.Dim("batch"), x.ndim - 2: torch.export.Dim.AUTO, x.ndim - 1: torch.export.Dim.AUTO}
    exported = torch.export.export(Wrapped(op), (x,), dynamic_shapes={"x": dims})
    other = normal(op.input_shape(5, 3, 8, 10), device, torch.float32)
    assert_close(exported.module()(other), op.function(other))
