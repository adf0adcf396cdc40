"""The Triton kernels: on a GPU as they are, elsewhere in Triton's interpreter; compiled ahead of time for two cards."""

import os
import subprocess
import sys
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
SIZES = [(1, 1), (5, 8), (2, 300)]


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
            constants = dict(INSIDE=inside, WIDE_ROWS=False, DOUBLE=dtype == torch.float64, ROWS=4, COLUMNS=256)
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
            for capability in (80, 90):
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
    assert len(done.stdout.splitlines()) == 4 * 3 * 2
