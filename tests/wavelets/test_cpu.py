"""What runs eagerly and what compilers see are the same operators: values, dtypes, layouts, to the last rounding."""

import pytest
import torch

from wsfvit.wavelets import cpu, reference
from wsfvit.wavelets.types import SwtMode

SIZES = [(1, 1), (1, 6), (5, 1), (2, 3), (8, 6), (7, 9)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert all(a == b for a, b, n in zip(actual.stride(), expected.stride(), actual.shape, strict=True) if n > 1)
    # One rounding of the input's dtype: the two add in another order.
    eps = torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=eps, atol=4 * min(eps, torch.finfo(torch.float32).eps))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_eager_vs_reference_dwt(size, layout, dtype, device):
    x = torch.randn(2, 3, *size, device=device).to(dtype=dtype, memory_format=layout)
    y = reference.haar_dwt2d(x)
    assert_same(cpu.haar_dwt2d(x), y)
    for output_size in {(2 * h - a, 2 * w - b) for h, w in [y.shape[3:]] for a in (0, 1) for b in (0, 1)}:
        assert_same(cpu.haar_idwt2d(y, output_size), reference.haar_idwt2d(y, output_size))


@pytest.mark.parametrize("flip_details", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("mode", ["zero", "periodic"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_eager_vs_reference_swt(size, layout, mode: SwtMode, average, flip_details, dtype, device):
    x = torch.randn(2, 3, *size, device=device).to(dtype=dtype, memory_format=layout)
    arguments = mode, average, flip_details
    s = reference.haar_swt2d(x, *arguments)
    assert_same(cpu.haar_swt2d(x, *arguments), s)
    assert_same(cpu.haar_swt2d_adjoint(s, *arguments), reference.haar_swt2d_adjoint(s, *arguments))
