"""The Haar operators: one ladder of checks, each rung for every operator."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wavelets.haar_oracles import Op, normal, pywt_dwt2, pywt_swt2

from wsfvit.wavelets import haar_dwt2d, haar_idwt2d, haar_iswt2d, haar_swt2d

SIZES = [(1, 1), (1, 7), (6, 1), (2, 2), (4, 6), (5, 8), (7, 7)]
sizes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 33), st.integers(1, 33))


def test_smoke(op: Op, device, dtype):
    y = op.function(normal(op.input_shape(2, 3, 4, 6), device, dtype))
    assert y.dtype == dtype and y.device.type == device.type and y.isfinite().all()


@pytest.mark.parametrize("size", SIZES)
def test_shapes(op: Op, device, size):
    y = op.function(normal(op.input_shape(2, 3, *size), device))
    assert y.shape == op.output_shape(2, 3, *size)
    assert y.is_contiguous()
    if not op.inverse:
        assert y.flatten(0, 1).data_ptr() == y.flatten(1, 2).data_ptr() == y.data_ptr()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_shapes_output_size(device, size, shift):
    H, W = 2 * size[0] - shift[0], 2 * size[1] - shift[1]
    y = normal((2, 4, 3, *size), device)
    assert torch.equal(haar_idwt2d(y, output_size=(H, W)), haar_idwt2d(y)[..., :H, :W])


def test_exceptions(op: Op, device):
    good = normal(op.input_shape(2, 3, 4, 6), device)
    for bad in (good[0], good.unsqueeze(0), good.long(), good.to(torch.complex64), good[..., :0], good[:0]):
        with pytest.raises(ValueError) as error:
            op.function(bad)
        assert str(tuple(bad.shape)) in str(error.value) and str(bad.dtype) in str(error.value)
    if op.inverse:
        with pytest.raises(ValueError, match=r"\(2, 3, 3, 4, 6\)"):
            op.function(good[:, :3])


def test_exceptions_arguments(device):
    with pytest.raises(ValueError, match="symmetric"):
        haar_swt2d(normal((1, 1, 4, 4), device), mode="symmetric")
    with pytest.raises(ValueError, match="symmetric"):
        haar_iswt2d(normal((1, 4, 1, 4, 4), device), mode="symmetric")
    for output_size in ((9, 6), (6, 6), (8, 4), (8, 7)):
        with pytest.raises(ValueError, match=rf"\({output_size[0]}, {output_size[1]}\).*\(4, 3\)"):
            haar_idwt2d(normal((1, 4, 1, 4, 3), device), output_size=output_size)


@pytest.mark.parametrize("size", SIZES)
def test_parity_pywt(op: Op, device, dtype, size, assert_close):
    x = normal(op.input_shape(2, 3, *size), device, dtype)
    assert_close(op.function(x), op.oracle(x.double().cpu().numpy()))


def test_precision(op: Op, device, dtype, assert_close):
    """Arithmetic in float32 and one final cast: half precision is the exact result, rounded once.

    The tolerances alone would let arithmetic in half precision pass on a sample of this size.
    """
    x = normal(op.input_shape(2, 3, 32, 32), device, dtype)
    y, exact = op.function(x), op.function(x.double())
    assert_close(y, exact)
    if dtype in (torch.float16, torch.bfloat16):
        # Rounding float32 first may tip the scale where the exact result lies half-way between two values.
        assert (y != exact.to(dtype)).double().mean() < 1e-3


def test_textbook_values(device):
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 9.0]], device=device).view(1, 1, 2, 3)
    dwt = [[[6.5, 6.0]], [[-3.5, -3.0]], [[-1.5, 6.0]], [[0.5, -3.0]]]
    zero = [
        [[6.5, 10.0, 6.0], [5.0, 7.5, 4.5]],
        [[-3.5, -5.0, -3.0], [5.0, 7.5, 4.5]],
        [[-1.5, -2.0, 6.0], [-1.0, -1.5, 4.5]],
        [[0.5, 1.0, -3.0], [-1.0, -1.5, 4.5]],
    ]
    periodic = [
        [[6.5, 10.0, 8.5], [6.5, 10.0, 8.5]],
        [[-3.5, -5.0, -4.5], [3.5, 5.0, 4.5]],
        [[-1.5, -2.0, 3.5], [-1.5, -2.0, 3.5]],
        [[0.5, 1.0, -1.5], [-0.5, -1.0, 1.5]],
    ]
    assert haar_dwt2d(x)[0, :, 0].tolist() == dwt
    assert haar_swt2d(x)[0, :, 0].tolist() == zero
    assert haar_swt2d(x, "periodic")[0, :, 0].tolist() == periodic
    assert torch.equal(haar_idwt2d(torch.tensor(dwt, device=device).view(1, 4, 1, 1, 2), (2, 3)), x)
    # One coefficient that no image has alone: each of its four pixels gets its share of the mean.
    s = torch.zeros(1, 4, 1, 3, 3, device=device)
    s[0, 0, 0, 0, 0] = 2.0
    assert haar_iswt2d(s, "zero")[0, 0].tolist() == [[1.0, 0.5, 0.0], [0.5, 0.25, 0.0], [0.0, 0.0, 0.0]]
    assert haar_iswt2d(s, "periodic")[0, 0].tolist() == [[0.25, 0.25, 0.0], [0.25, 0.25, 0.0], [0.0, 0.0, 0.0]]


@given(shape=sizes)
def test_odd_sizes(device, assert_close, shape):
    """Every size: parity with PyWavelets, and the inverse gives the image back."""
    x = normal(shape, device)
    H, W = shape[2:]
    y = haar_dwt2d(x)
    assert_close(y, pywt_dwt2(x.cpu().numpy()))
    assert_close(haar_idwt2d(y, output_size=(H, W)), x)
    assert_close(y.square().sum(), x.square().sum())
    for mode in ("zero", "periodic"):
        s = haar_swt2d(x, mode)
        assert_close(s, pywt_swt2(x.cpu().numpy(), mode))
        assert_close(haar_iswt2d(s, mode), x)


@pytest.mark.parametrize("size", SIZES)
def test_reconstruction(device, size, assert_close):
    x, y = normal((2, 3, *size), device, torch.float32), normal((2, 4, 3, *size), device, torch.float32)
    assert_close(haar_idwt2d(haar_dwt2d(x), size), x)
    assert_close(haar_dwt2d(haar_idwt2d(y)), y)
    for mode in ("zero", "periodic"):
        assert_close(haar_iswt2d(haar_swt2d(x, mode), mode), x)


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_energy(device, size, assert_close):
    x = normal((2, 3, *size), device)
    assert_close(haar_dwt2d(x).square().sum(), x.square().sum())
    assert_close(haar_swt2d(x, "periodic").square().sum(), 4 * x.square().sum())


@pytest.mark.parametrize("size", SIZES)
def test_adjoint(op: Op, device, size, assert_close):
    """<f(x), y> = <x, f*(y)>, with f* the backward."""
    x = normal(op.input_shape(2, 3, *size), device).requires_grad_()
    y = normal(op.output_shape(2, 3, *size), device)
    (back,) = torch.autograd.grad(op.function(x), x, y)
    assert_close((op.function(x) * y).sum(), (x * back).sum())
    if op.decimated and not op.inverse:
        assert torch.equal(back, haar_idwt2d(y, size))
    if op.decimated and op.inverse:
        assert torch.equal(back, haar_dwt2d(y))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2)])
def test_gradcheck(op: Op, device, size):
    x = normal(op.input_shape(1, 2, *size), device).requires_grad_()
    assert torch.autograd.gradcheck(op.function, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(op.function, x)


def test_gradcheck_output_size(device):
    y = normal((1, 4, 2, 2, 3), device).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: haar_idwt2d(y, (3, 5)), y)
    assert torch.autograd.gradgradcheck(lambda y: haar_idwt2d(y, (3, 5)), y)


def test_saves_nothing(op: Op, device):
    def refuse(tensor: torch.Tensor) -> None:
        pytest.fail(f"a tensor of shape {tuple(tensor.shape)} was saved for the backward")

    x = normal(op.input_shape(2, 3, 5, 6), device, torch.bfloat16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda saved: saved):
        op.function(x)


def test_functional_transforms(op: Op, device, assert_close):
    x = normal((5, *op.input_shape(1, 2, 3, 4)), device)
    assert_close(torch.func.vmap(op.function)(x), torch.stack([op.function(item) for item in x]))
    value, tangent = torch.func.jvp(op.function, (x[0],), (x[1],))
    assert_close(value, op.function(x[0]))
    assert_close(tangent, op.function(x[1]))
    (back,) = torch.func.vjp(op.function, x[0])[1](value)
    jacobian = torch.func.jacrev(op.function)(x[0])
    assert_close(back, (value.reshape(-1) @ jacobian.reshape(value.numel(), -1)).view_as(back))
