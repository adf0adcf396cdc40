"""Token mixers against slow, direct forms of their definitions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsfvit.layers import AFNO2d, GlobalFilter, WaveletMixer, resample_filter
from wsfvit.wavelets import dwt2d, haar_dwt2d, haar_idwt2d, idwt2d

pywt = pytest.importorskip("pywt")

SIZES = [(8, 8), (7, 5), (1, 6), (9, 1)]


def tokens(*size: int, dim: int = 12) -> Tensor:
    return torch.randn(2, *size, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_afno_is_its_complex_mlp(size: tuple[int, int]) -> None:
    mixer, x = AFNO2d(12, num_blocks=3, sparsity_threshold=0.002).double(), tokens(*size)
    w1, b1, w2, b2 = (torch.complex(*p.detach()) for p in (mixer.w1, mixer.b1, mixer.w2, mixer.b2))
    spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho").unflatten(-1, (3, 4))
    hidden = torch.einsum("bhwki,kio->bhwko", spectrum, w1) + b1
    hidden = torch.complex(hidden.real.relu(), hidden.imag.relu())
    out = torch.einsum("bhwki,kio->bhwko", hidden, w2) + b2
    out = torch.complex(F.softshrink(out.real, 0.002), F.softshrink(out.imag, 0.002)).flatten(3)
    torch.testing.assert_close(mixer(x), x + torch.fft.irfft2(out, s=size, dim=(1, 2), norm="ortho"))


def test_afno_gradients() -> None:
    mixer = AFNO2d(4, num_blocks=2, sparsity_threshold=0.001).double()
    parameters = [p.detach().clone().requires_grad_() for p in mixer.parameters()]
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (tokens(3, 4, dim=4).requires_grad_(), *parameters))


@pytest.mark.parametrize("mixer", [AFNO2d(12, 3), GlobalFilter(12, (8, 8))], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_autocast_computes_in_float32(mixer: torch.nn.Module, size: tuple[int, int]) -> None:
    x = tokens(*size).float().requires_grad_()
    expected = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        half = mixer(x.bfloat16())
    y.sum().backward()
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), mixer(x.bfloat16().float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("grid", [(8, 8), (7, 5)])
def test_global_filter_is_a_circular_convolution(grid: tuple[int, int]) -> None:
    layer, x = GlobalFilter(12, grid).double(), tokens(*grid)
    kernel = torch.fft.irfft2(torch.view_as_complex(layer.complex_weight.detach()), s=grid, dim=(0, 1))
    expected = torch.zeros_like(x)
    for i in range(grid[0]):
        for j in range(grid[1]):
            expected += kernel[i, j] * x.roll((i, j), (1, 2))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("grid", [(8, 8), (7, 5)])
@pytest.mark.parametrize("new", [(16, 16), (9, 14), (8, 6), (3, 4), (1, 1)])
def test_resampled_filter_keeps_its_taps(grid: tuple[int, int], new: tuple[int, int]) -> None:
    """On any map: every tap at its offset from 0, taps at equal places of a smaller map summed."""
    layer = GlobalFilter(4, grid).double()
    weight = layer.complex_weight.detach()
    kernel = torch.fft.irfft2(torch.view_as_complex(weight), s=grid, dim=(0, 1))
    expected = torch.zeros(*new, 4, dtype=torch.float64)
    for i, di in enumerate(torch.fft.fftfreq(grid[0], 1 / grid[0]).long().tolist()):
        for j, dj in enumerate(torch.fft.fftfreq(grid[1], 1 / grid[1]).long().tolist()):
            expected[di % new[0], dj % new[1]] += kernel[i, j]
    delta = torch.zeros(1, *new, 4, dtype=torch.float64)
    delta[:, 0, 0] = 1
    torch.testing.assert_close(layer(delta)[0], expected)
    resampled = copy.deepcopy(layer)
    resampled.set_grid_size(new)
    torch.testing.assert_close(resampled(delta), layer(delta))
    if new[0] >= grid[0] and new[1] >= grid[1]:
        back = resample_filter(resampled.complex_weight.detach(), new, grid)
        same = GlobalFilter(4, grid).double()
        same.load_state_dict({"complex_weight": back})
        x = tokens(*grid, dim=4)
        torch.testing.assert_close(same(x), layer(x))


def gelu_of_filtered(mixer: WaveletMixer, cA: Tensor, details: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    conv3, conv1 = mixer.approx_conv or mixer.conv3, mixer.detail_conv or mixer.conv1
    return F.gelu(conv3(cA)), [F.gelu(conv1(detail)) for detail in details]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_wavelet_mixer_at_level_one(share: bool, size: tuple[int, int]) -> None:
    mixer = WaveletMixer(12, (3, 4), share_kernels=share).double()
    assert sum(p.numel() for p in mixer.parameters()) == (1 if share else 2) * (144 * 9 // 3 + 144 // 4 + 24)
    x = tokens(*size).permute(0, 3, 1, 2)
    cA, *details = haar_dwt2d(x).unbind(1)
    cA, details = gelu_of_filtered(mixer, cA, details)
    scales = haar_idwt2d(torch.stack([cA, *details], 1), size)
    expected = F.gelu(scales + F.gelu(mixer.conv1(x)) + F.gelu(mixer.conv3(x)))
    torch.testing.assert_close(mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize(("wavelet", "level"), [("haar", 2), ("haar", 3), ("db2", 1), ("db2", 2), ("bior2.2", 3)])
def test_wavelet_mixer_filters_the_last_level_only(wavelet: str, level: int) -> None:
    """Even sizes, where mode "periodization" is Haar's border too."""
    mixer, size = WaveletMixer(12, 4, level, wavelet).double(), (16, 24)
    x = tokens(*size).permute(0, 3, 1, 2)
    cA, details, *finer = dwt2d(x, wavelet, level, "periodization")
    cA, details = gelu_of_filtered(mixer, cA, list(details))
    scales = idwt2d([cA, details, *finer], wavelet, "periodization", size)
    expected = F.gelu(scales + F.gelu(mixer.conv1(x)) + F.gelu(mixer.conv3(x)))
    torch.testing.assert_close(mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("wavelet", ["db1", *pywt.wavelist("sym")[:2]])
def test_wavelet_mixer_runs_on_any_size(wavelet: str) -> None:
    mixer = WaveletMixer(12, 4, 2, wavelet)
    for size in SIZES:
        assert mixer(tokens(*size).float()).shape == (2, *size, 12)
