"""The Triton kernels: on a GPU or in Triton's interpreter, and compiled ahead of time for two architectures."""

import contextlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu

from wsfvit.wavelets import SwtMode, haar_dwt2d, haar_swt2d, reference, wavelet_backend
from wsfvit.wavelets.triton.stem_operator import haar_swt2d_affine_gelu

pytest.importorskip("triton")
from wsfvit.wavelets.triton import haar as kernels  # noqa: E402  needs Triton
from wsfvit.wavelets.triton import kernels as triton_kernels  # noqa: E402

ROOT = Path(__file__).parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # set by tests/conftest.py where there is no GPU
# Triton's interpreter rounds to bfloat16 towards zero, so only a GPU can be held to the reference's rounding.
DTYPES = [torch.float64, torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
# One pixel; odd sizes; several tiles across; several strips of several lines, cut into fours.
SIZES = [(1, 1), (5, 7), (2, 200), (19, 36)]


@pytest.fixture(autouse=True)
def long_strips(request, monkeypatch):
    """Strips of many lines, which only large tensors have otherwise; of one line where the test's size is (5, 7)."""
    size = request.node.callspec.params.get("size") if hasattr(request.node, "callspec") else None
    monkeypatch.setattr(kernels, "LINES", 1 if size == (5, 7) else 8)
    monkeypatch.setattr(kernels, "PROGRAMS", 0)


def assert_same(got: torch.Tensor, expected: torch.Tensor, exact: bool = True) -> None:
    assert got.dtype == expected.dtype and got.stride() == expected.stride()
    if exact:
        assert torch.equal(got, expected)
    else:
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_dwt_and_idwt_equal_the_reference_bit_for_bit(device, size, dtype, layout):
    x = torch.randn(2, 3, *size, device=device).to(dtype).contiguous(memory_format=layout)
    y = reference.haar_dwt2d(x)
    assert_same(kernels.haar_dwt2d(x), y)
    for output_size in {(2 * h - a, 2 * w - b) for h, w in [y.shape[3:]] for a in (0, 1) for b in (0, 1)}:
        assert_same(kernels.haar_idwt2d(y, output_size), reference.haar_idwt2d(y, output_size))


@pytest.mark.parametrize("options", [(False, False), (True, True)], ids=str)
@pytest.mark.parametrize("mode", ["zero", "periodic"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_swt_and_its_adjoint_equal_the_reference(device, size, dtype, layout, mode: SwtMode, options):
    x = torch.randn(2, 3, *size, device=device).to(dtype).contiguous(memory_format=layout)
    s = reference.haar_swt2d(x, mode, *options)
    assert_same(kernels.haar_swt2d(x, mode, *options), s)
    # Sixteen terms, summed in another order than the reference's.
    expected = reference.haar_swt2d_adjoint(s, mode, *options)
    assert_same(kernels.haar_swt2d_adjoint(s, mode, *options), expected, exact=False)


@pytest.mark.parametrize("mode", ["zero", "periodic"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_swt_with_factor_summand_and_gelu(device, assert_close, size, dtype, layout, mode: SwtMode):
    x = torch.randn(2, 3, *size, device=device).to(dtype).contiguous(memory_format=layout)
    factor, summand = torch.randn(2, 12, device=device).to(dtype)
    y = 2 * reference.haar_swt2d(x.double(), mode).flatten(1, 2)
    expected = gelu(y * factor.double().view(12, 1, 1) + summand.double().view(12, 1, 1), approximate="tanh")
    for got_dtype in {dtype, torch.float32}:
        got = haar_swt2d_affine_gelu(x, factor, summand, mode == "periodic", got_dtype)
        assert got.dtype == got_dtype and got.permute(0, 2, 3, 1).is_contiguous()
        assert_close(got, expected)


def test_operator_is_registered_as_torch_wants_it(device):
    x = torch.randn(2, 3, 5, 8, device=device)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(haar_swt2d_affine_gelu, (images, *torch.randn(2, 12, device=device), False, torch.half))


def test_fused_gelu_of_large_numbers(device):
    """At 400, -400 and where the exponential overflows float32: x, or zero."""
    x = torch.tensor([100.0, -100.0, 1e10, -1e10], device=device).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    factor, summand = torch.ones(12, device=device), torch.zeros(12, device=device)
    got = haar_swt2d_affine_gelu(x, factor, summand, True, torch.float32)[:, 0, 0, 0]
    assert torch.equal(got, torch.tensor([400.0, 0, 4e10, 0], device=device))


def test_any_strides(device):
    x = torch.randn(3, 6, 10, 4, device=device)
    for strided in (x.mT, x[:, ::2, 1::2], x.flip(1).permute(3, 1, 0, 2), x[:1].expand(2, -1, -1, -1)):
        assert_same(kernels.haar_dwt2d(strided), reference.haar_dwt2d(strided.contiguous()))
        assert_same(kernels.haar_swt2d(strided, "zero"), reference.haar_swt2d(strided.contiguous(), "zero"))


def test_public_functions_use_the_kernels_and_differentiate_through_them(device, monkeypatch):
    calls = []
    start = kernels._start

    def noted(launch):
        calls.append(launch.kernel)
        start(launch)

    monkeypatch.setattr(kernels, "_start", noted)
    x = torch.randn(1, 2, 5, 6, device=device, requires_grad=True)
    for function, forward, backward in (
        (haar_dwt2d, triton_kernels.haar_dwt2d_kernel, triton_kernels.haar_idwt2d_kernel),
        (haar_swt2d, triton_kernels.haar_swt2d_kernel, triton_kernels.haar_swt2d_adjoint_kernel),
    ):
        weight = torch.randn_like(function(x))
        (expected,) = torch.autograd.grad(function(x), x, weight)
        with wavelet_backend("triton"):
            (got,) = torch.autograd.grad(function(x), x, weight)
        assert calls == [forward, backward]
        calls.clear()
        torch.testing.assert_close(got, expected)


# In elements. Below 2^31, where Triton passes strides in 32 bits; twice that is above. Only used pages take memory.
FAR = 2**30 + 1024


def far_apart(tensor: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """The same values, FAR elements from one index of ``axis`` to the next: the third lies beyond 2^31."""
    if tensor.is_cuda and torch.cuda.get_device_properties(tensor.device).total_memory < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    stride = [FAR if place == axis else step for place, step in enumerate(tensor.stride())]
    size = 1 + sum((length - 1) * step for length, step in zip(tensor.shape, stride, strict=True))
    far = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    far.untyped_storage().resize_(size * tensor.element_size())
    far.set_(far.untyped_storage(), 0, tensor.shape, stride)
    return far.copy_(tensor)


@contextlib.contextmanager
def allocating(allocate: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Outputs come from ``allocate(like, *shape)``; calls of Triton's interpreter, with a device, stay unchanged."""
    plain = torch.Tensor.new_empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.Tensor, "new_empty", lambda *args, dtype=None, **more: (plain if more else allocate)(*args, **more)
        )
        yield


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_offsets_above_2_to_the_31(device, layout, monkeypatch):
    """Strided inputs and outputs beyond 2^31 elements, with positions counted in 32 and in 64 bits."""
    x = torch.randn(3, 2, 5, 6, device=device).half().contiguous(memory_format=layout)
    y, s = reference.haar_dwt2d(x), reference.haar_swt2d(x, "zero")
    x_again, adjoint = reference.haar_idwt2d(y, (5, 6)), reference.haar_swt2d_adjoint(s, "zero")
    for wide in (False, True):
        monkeypatch.setattr(kernels, "COUNTED_IN_32_BITS", 0 if wide else 2**31)
        assert torch.equal(kernels.haar_dwt2d(far_apart(x)), y)
        assert torch.equal(kernels.haar_idwt2d(far_apart(y), (5, 6)), x_again)
        assert torch.equal(kernels.haar_swt2d(far_apart(x), "zero"), s)
        torch.testing.assert_close(kernels.haar_swt2d_adjoint(far_apart(s), "zero"), adjoint)
    with allocating(lambda like, *shape: far_apart(torch.zeros(shape, dtype=like.dtype, device=like.device))):
        far = kernels.haar_dwt2d(x)
    assert far.stride(0) == FAR and torch.equal(far, y)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_offsets_above_2_to_the_31_with_factor_summand_and_gelu(device, layout, monkeypatch):
    x = torch.randn(3, 3, 5, 8, device=device).half().contiguous(memory_format=layout)
    options = (*torch.randn(2, 12, device=device), False, x.dtype)
    expected = kernels.haar_swt2d_affine_gelu(x, *options)
    for wide in (False, True):
        monkeypatch.setattr(kernels, "COUNTED_IN_32_BITS", 0 if wide else 2**31)
        for axis in (0, 1, 2):
            assert torch.equal(kernels.haar_swt2d_affine_gelu(far_apart(x, axis), *options), expected)
    with allocating(lambda like, *shape: far_apart(torch.zeros(shape, dtype=like.dtype, device=like.device))):
        far = kernels.haar_swt2d_affine_gelu(x, *options)
    assert far.stride(0) == FAR and torch.equal(far, expected)


def test_subbands_and_lines_that_are_far_apart(device):
    """Strides fit 32 bits here, offsets do not."""
    x = torch.randn(1, 1, 4, 6, device=device).half()
    y, s = reference.haar_dwt2d(x), reference.haar_swt2d(x, "periodic")
    assert torch.equal(kernels.haar_dwt2d(far_apart(x, 2)), y)
    assert torch.equal(kernels.haar_swt2d(far_apart(x, 2), "periodic"), s)
    assert torch.equal(kernels.haar_idwt2d(far_apart(y, 1), (4, 6)), reference.haar_idwt2d(y, (4, 6)))
    adjoint = reference.haar_swt2d_adjoint(s, "periodic")
    for axis in (1, 3):
        torch.testing.assert_close(kernels.haar_swt2d_adjoint(far_apart(s, axis), "periodic"), adjoint)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs 13 GB of GPU memory")
def test_more_than_2_to_the_31_elements():
    x = torch.empty(1, 1, 46342, 46342, dtype=torch.float16, device="cuda").normal_()
    y = kernels.haar_dwt2d(x)
    assert y.numel() > 2**31 and torch.equal(y[..., -8:, -8:], reference.haar_dwt2d(x[..., -16:, -16:]))
    assert torch.equal(
        kernels.haar_idwt2d(y, (46342, 46342))[..., -16:, -16:], reference.haar_idwt2d(y[..., -8:, -8:], (16, 16))
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_written_beside_the_output_nor_read_beside_the_input(device, size, layout):
    """Guard values around every tensor must stay unchanged and must not reach the output."""
    guarded = []

    def guard(like, *shape):
        numel = math.prod(shape)
        memory = torch.full((numel + 4096,), float("inf"), dtype=like.dtype, device=like.device)
        guarded.append((memory, numel))
        return memory[2048:][:numel].view(shape)

    x = torch.randn(2, 3, *size, device=device).contiguous(memory_format=layout)
    y, s = reference.haar_dwt2d(x), reference.haar_swt2d(x, "zero")
    with allocating(guard):
        for function, argument, *more in (
            (kernels.haar_dwt2d, x),
            (kernels.haar_idwt2d, y, size),
            (kernels.haar_swt2d, x, "zero"),
            (kernels.haar_swt2d_adjoint, s, "zero"),
            (kernels.haar_swt2d_affine_gelu, x, *torch.ones(2, 12, device=device), False, x.dtype),
        ):
            inside = torch.as_strided(guard(argument, argument.numel()), argument.shape, argument.stride())
            assert function(inside.copy_(argument), *more).isfinite().all()
    assert len(guarded) == 10
    for memory, numel in guarded:
        assert memory[:2048].isinf().all() and memory[2048 + numel :].isinf().all()


def test_every_kernel_compiles_for_ampere_and_hopper(tmp_path):
    """With accesses of 8 bytes or more where the shapes allow it, and without exchange between threads."""
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.wavelets.ahead_of_time"],
        cwd=ROOT,
        env=inherited | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    cases = Counter(kernel["case"] for kernel in found)
    assert cases == {"even": 3 * 5 + 2 * 4, "odd": 5, "periodic": 2 * 2}
    for kernel in found:
        access = min(kernel["load"], kernel["store"])
        if kernel["case"] == "even":
            # The stem's kernel has all subbands of a pixel in one thread and stores them side by side.
            assert access >= 8 and (kernel["shared"] == 0 or kernel["kernel"] == "haar_stem_kernel"), kernel
        assert kernel["case"] != "odd" or access == 4, kernel
