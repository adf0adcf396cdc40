"""The Triton kernels: on a GPU as they are, elsewhere in Triton's interpreter; compiled ahead of time for two cards."""

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from wsfvit.wavelets import SwtMode, haar_dwt2d, haar_swt2d, reference, wavelet_backend

pytest.importorskip("triton")
from wsfvit.wavelets import triton_haar as kernels  # noqa: E402  needs Triton

ROOT = Path(__file__).parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # set by tests/conftest.py where there is no GPU
# Triton's interpreter rounds to bfloat16 towards zero, so only a GPU can be held to the reference's rounding.
DTYPES = [torch.float64, torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
SIZES = [(1, 1), (5, 7), (2, 300)]


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


def test_any_strides(device):
    x = torch.randn(3, 6, 10, 4, device=device)
    for strided in (x.mT, x[:, ::2, 1::2], x.flip(1).permute(3, 1, 0, 2), x[:1].expand(2, -1, -1, -1)):
        assert_same(kernels.haar_dwt2d(strided), reference.haar_dwt2d(strided.contiguous()))
        assert_same(kernels.haar_swt2d(strided, "zero"), reference.haar_swt2d(strided.contiguous(), "zero"))


def test_public_functions_use_the_kernels_and_differentiate_through_them(device, monkeypatch):
    calls = []
    launch = kernels._launch

    def noted(kernel, *rest, **options):
        calls.append(kernel)
        launch(kernel, *rest, **options)

    monkeypatch.setattr(kernels, "_launch", noted)
    x = torch.randn(1, 2, 5, 6, device=device, requires_grad=True)
    for function, forward, backward in (
        (haar_dwt2d, kernels._haar_dwt2d_kernel, kernels._haar_idwt2d_kernel),
        (haar_swt2d, kernels._haar_swt2d_kernel, kernels._haar_swt2d_adjoint_kernel),
    ):
        weight = torch.randn_like(function(x))
        (expected,) = torch.autograd.grad(function(x), x, weight)
        with wavelet_backend("triton"):
            (got,) = torch.autograd.grad(function(x), x, weight)
        assert calls == [forward, backward]
        calls.clear()
        torch.testing.assert_close(got, expected)


# In elements. Below 2^31, where Triton takes a stride for a number of 32 bits; twice that is above. Only the pages that
# are used take memory.
FAR = 2**30 + 1024


def far_apart(images: torch.Tensor) -> torch.Tensor:
    """The three images (3, ...) again, more than 2^31 elements from the first to the last."""
    size = images[0].numel()
    far = torch.empty(0, dtype=images.dtype, device=images.device)
    far.untyped_storage().resize_((2 * FAR + size) * images.element_size())
    far.set_(far.untyped_storage(), 0, images.shape, (FAR, *images.stride()[1:]))
    return far.copy_(images)


@contextlib.contextmanager
def allocating(allocate: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Outputs come from ``allocate(like, *shape)``; Triton's interpreter, which asks for a device, is left alone."""
    plain = torch.Tensor.new_empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", lambda *args, **more: (plain if more else allocate)(*args, **more))
        yield


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_offsets_above_2_to_the_31(device, layout, monkeypatch):
    """What is far apart is read, and written where it belongs, by programs that count rows in either width."""
    x = torch.randn(3, 2, 5, 6, device=device).half().contiguous(memory_format=layout)
    y, s = reference.haar_dwt2d(x), reference.haar_swt2d(x, "zero")
    x_again, adjoint = reference.haar_idwt2d(y, (5, 6)), reference.haar_swt2d_adjoint(s, "zero")
    for wide in (False, True):
        monkeypatch.setattr(kernels, "ROWS_IN_32_BITS", 0 if wide else 2**31)
        assert torch.equal(kernels.haar_dwt2d(far_apart(x)), y)
        assert torch.equal(kernels.haar_idwt2d(far_apart(y), (5, 6)), x_again)
        assert torch.equal(kernels.haar_swt2d(far_apart(x), "zero"), s)
        torch.testing.assert_close(kernels.haar_swt2d_adjoint(far_apart(s), "zero"), adjoint)
    with allocating(lambda like, *shape: far_apart(torch.zeros(shape, dtype=like.dtype, device=like.device))):
        far = kernels.haar_dwt2d(x)
    assert far.stride(0) == FAR and torch.equal(far, y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="13 GB in a GPU's memory")
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
    """Around every tensor lie values that must stay and that would show."""
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
        ):
            inside = torch.as_strided(guard(argument, argument.numel()), argument.shape, argument.stride())
            assert function(inside.copy_(argument), *more).isfinite().all()
    assert len(guarded) == 8
    for memory, numel in guarded:
        assert memory[:2048].isinf().all() and memory[2048 + numel :].isinf().all()


AHEAD_OF_TIME = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wsfvit.wavelets import triton_haar

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
for kernel in (getattr(triton_haar, name) for name in dir(triton_haar) if name.endswith("_kernel")):
    for inside, dtypes in ((False, (torch.bfloat16, torch.float64)), (True, (torch.float32,))):
        for dtype in dtypes:
            pointer = POINTERS[dtype]
            constants = dict(INSIDE=inside, WIDE_ROWS=inside, DOUBLE=dtype == torch.float64, ROWS=4, COLUMNS=256)
            constants |= dict(PERIODIC=False, AVERAGE=False, FLIP=True)
            constants |= {name: 1 for name in kernel.arg_names if name.endswith("_c" if inside else "_w")}
            signature = {
                name: "constexpr" if name in constants else pointer if name.endswith("_ptr") else "i32"
                for name in kernel.arg_names
            }
            kinds = list(signature.values())
            source = ASTSource(
                fn=kernel,
                signature=signature,
                constexprs={(n,): constants[name] for n, name in enumerate(signature) if name in constants},
                attrs={(n,): [["tt.divisibility", 16]] for n, kind in enumerate(kinds) if kind != "constexpr"},
            )
            for capability in (80, 90) if dtype == torch.bfloat16 else (90,):
                compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
                assert len(compiled.asm["cubin"]) > 0
                print(kernel.__name__, capability, inside, dtype)
"""


def test_every_kernel_compiles_for_ampere_and_hopper(tmp_path):
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", AHEAD_OF_TIME],
        cwd=ROOT,
        env=inherited | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4 * (3 + 1)
