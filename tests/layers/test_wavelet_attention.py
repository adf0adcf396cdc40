"""Wavelet attention against its definition with band matrices."""

import sys

import peers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsfvit.layers import WaveletAttention, WaveletAttentionPool
from wsfvit.wavelets import filterbank

pywt = pytest.importorskip("pywt")

WAVELETS = ["haar", "db1", "db2", "db3", "sym4", "coif1", "bior2.2", "bior3.3", "rbio3.1", "dmey"]


def band_matrix(taps: list[float], size: int) -> Tensor:
    """Row i holds the taps from column 2i - (F/2 - 1) on, cut at the borders."""
    matrix = torch.zeros(size // 2, size, dtype=torch.float64)
    for row in range(size // 2):
        for j, tap in enumerate(taps):
            column = 2 * row - (len(taps) // 2 - 1) + j
            if 0 <= column < size:
                matrix[row, column] = tap
    return matrix


def attend_by_definition(x: Tensor, wavelet: str) -> tuple[Tensor, Tensor]:
    x = F.pad(x.double(), (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    taps = pywt.Wavelet(wavelet)
    low_h, high_h = (band_matrix(f, x.shape[2]) for f in (taps.rec_lo, taps.rec_hi))
    low_w, high_w = (band_matrix(f, x.shape[3]) for f in (taps.rec_lo, taps.rec_hi))
    LL, details = low_h @ x @ low_w.T, low_h @ x @ high_w.T + high_h @ x @ low_w.T
    return LL * (1 + details.softmax(1)), LL


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(16, 16), (8, 14), (7, 10), (10, 9), (3, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_definition(wavelet: str, size: tuple[int, int]) -> None:
    x = image(2, 5, *size).double()
    for actual, expected in zip(WaveletAttention(wavelet)(x), attend_by_definition(x, wavelet), strict=True):
        assert actual.shape == (2, 5, -(-size[0] // 2), -(-size[1] // 2))
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(WaveletAttentionPool(wavelet)(x), attend_by_definition(x, wavelet)[0])


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior3.3"])
def test_parity(wavelet: str) -> None:
    """Both outputs and the gradient of the authors' module."""
    case = peers.load_case(f"wacnn_wa_module_{wavelet.replace('.', '_')}")
    x = case.make_input().requires_grad_()
    outputs = WaveletAttention(wavelet)(x)
    loss = torch.zeros(())
    for i, y in enumerate(outputs):
        torch.testing.assert_close(y, case.arrays[f"out{i}_f64"], rtol=1e-9, atol=1e-12)
        loss = loss + (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum()
    loss.backward()
    assert x.grad.norm().item() == pytest.approx(case.info["grad_norms"]["__input__"], rel=1e-9)
    torch.testing.assert_close(x.grad[..., :8, :8], case.arrays["gradx_corner_f64"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("size", [(4, 6), (5, 3)], ids=str)
def test_derivatives(wavelet: str, size: tuple[int, int]) -> None:
    x = image(1, 3, *size).double().requires_grad_()
    assert torch.autograd.gradcheck(WaveletAttention(wavelet), x)
    assert torch.autograd.gradgradcheck(WaveletAttention(wavelet), x)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_arithmetic_is_in_float32(wavelet: str, dtype: torch.dtype) -> None:
    """Of 512 channels the weights are near 1/512, which bfloat16 would lose beside 1."""
    x = image(2, 512, 6, 6).to(dtype)
    expected, _ = attend_by_definition(x, wavelet)
    module = WaveletAttention(wavelet).to(dtype)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out, LL = module(x)
        assert out.dtype == LL.dtype == dtype
        tolerance = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
        torch.testing.assert_close(
            out.double(), expected, rtol=tolerance, atol=1e-6 if dtype == torch.float32 else 1e-4
        )


@pytest.mark.parametrize("wavelet", ["haar", "bior2.2"])
def test_memory_layout_and_compiler(wavelet: str) -> None:
    x, module = image(2, 4, 9, 12), WaveletAttention(wavelet)
    expected = module(x)
    strided = image(2, 4, 9, 24)[..., ::2]
    for actual, wanted in zip(module(x.to(memory_format=torch.channels_last)), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    for actual, wanted in zip(module(strided), module(strided.contiguous()), strict=True):
        torch.testing.assert_close(actual, wanted)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(compiled(x), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_haar_does_not_import_pywavelets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pywt", None)  # importing it now raises
    WaveletAttention("haar")(image(1, 2, 4, 4))
    filterbank._read_filter_bank.cache_clear()
    with pytest.raises(ImportError):
        WaveletAttention("db2")


def test_no_parameters_and_no_entries_in_the_state_dict() -> None:
    for wavelet in ("haar", "db2"):
        assert not list(WaveletAttention(wavelet).parameters()) and not WaveletAttention(wavelet).state_dict()
