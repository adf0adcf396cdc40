"""Token mixers in the Fourier domain for maps of any size: adaptive Fourier neural operator and global filter.

Both compute in float32 or wider, also under autocast: most devices have no FFT in half precision. The FFTs run over the
last two axes: for others torch 2.11 reports wrong strides to compilers.
"""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from wsfvit.wavelets.filterbank import without_autocast
from wsfvit.wavelets.reference import compute_dtype

from .layout import to_nchw, to_nhwc


@register_notrace_module
class AFNO2d(nn.Module):
    """Adaptive Fourier neural operator (Guibas et al., 2022): one MLP, shared by all frequencies, and the identity.

    The C complex channels of each frequency form K blocks. Each block passes a complex linear layer, a ReLU and another
    complex linear layer; ReLU and soft shrinkage act separately on real and imaginary parts. All frequencies are kept:
    the published fraction of kept frequencies is 1, and at 0.25 its code also keeps all of an 8x8 map.

    Args:
        dim: Channels C.
        num_blocks: Blocks K of the channels; a divisor of C.
        sparsity_threshold: Lambda of the soft shrinkage.

    Shape: (B, H, W, C) -> the same; dtype of the input.

    Raises:
        ValueError: K does not divide C, or the threshold is negative.
    """

    def __init__(self, dim: int, num_blocks: int = 8, sparsity_threshold: float = 0.01) -> None:
        super().__init__()
        if num_blocks < 1 or dim % num_blocks:
            raise ValueError(f"AFNO: width {dim} is not a multiple of {num_blocks} blocks")
        if not sparsity_threshold >= 0:
            raise ValueError(f"AFNO: sparsity_threshold must be at least 0, not {sparsity_threshold}")
        self.num_blocks = num_blocks
        self.sparsity_threshold = sparsity_threshold
        size = dim // num_blocks
        self.w1 = nn.Parameter(0.02 * torch.randn(2, num_blocks, size, size))
        self.b1 = nn.Parameter(0.02 * torch.randn(2, num_blocks, size))
        self.w2 = nn.Parameter(0.02 * torch.randn(2, num_blocks, size, size))
        self.b2 = nn.Parameter(0.02 * torch.randn(2, num_blocks, size))

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, _ = x.shape
        with without_autocast(x.device):
            spectrum = torch.fft.rfft2(to_nchw(x).to(compute_dtype(x.dtype)), norm="ortho")
            mixed = torch.fft.irfft2(self.mix_channels(spectrum), s=(H, W), norm="ortho")
        return x + to_nhwc(mixed).to(x.dtype)

    def mix_channels(self, spectrum: Tensor) -> Tensor:
        """The MLP of every frequency: complex (B, C, H, W // 2 + 1) -> the same."""
        B, C, H, bins = spectrum.shape
        by_block = spectrum.unflatten(1, (self.num_blocks, -1)).permute(1, 0, 3, 4, 2)
        # (K, B * frequencies, 2 * C / K), real and imaginary parts interleaved: a complex layer is then one batched
        # product with the real form of its weight, instead of four products and their sums.
        x = torch.view_as_real(by_block.reshape(self.num_blocks, -1, C // self.num_blocks)).flatten(2)
        x = torch.matmul(x, real_form(self.w1.to(x.dtype))).add_(self._real_bias(self.b1, x.dtype)).relu_()
        x = torch.matmul(x, real_form(self.w2.to(x.dtype))).add_(self._real_bias(self.b2, x.dtype))
        x = F.softshrink(x, self.sparsity_threshold)
        mixed = torch.view_as_complex(x.view(*by_block.shape, 2))
        return mixed.permute(1, 0, 4, 2, 3).reshape(B, C, H, bins)

    @staticmethod
    def _real_bias(bias: Tensor, dtype: torch.dtype) -> Tensor:
        """(2, K, n) -> (K, 1, 2n), real and imaginary parts interleaved."""
        return bias.to(dtype).permute(1, 2, 0).flatten(1).unsqueeze(1)

    def extra_repr(self) -> str:
        return f"num_blocks={self.num_blocks}, sparsity_threshold={self.sparsity_threshold}"


def real_form(weight: Tensor) -> Tensor:
    """Real matrices, for interleaved (real, imaginary) vectors, of complex matrices (2, K, m, n), real part first.

    In the result (K, 2m, 2n) each complex entry a + ib becomes [[a, b], [-b, a]].
    """
    real, imag = weight
    to_real, to_imag = torch.stack((real, -imag), 2), torch.stack((imag, real), 2)
    return torch.stack((to_real, to_imag), -1).flatten(3).flatten(1, 2)


@register_notrace_module
class GlobalFilter(nn.Module):
    """A learned circular convolution with one full-size kernel per channel (GFNet, Rao et al., 2021).

    On a map of another size than `grid_size`, (h, w), the kernel keeps its taps, see `resample_filter`.

    Shape: (B, H, W, dim) -> the same, any H and W; dtype of the input.
    """

    def __init__(self, dim: int, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.complex_weight = nn.Parameter(0.02 * torch.randn(grid_size[0], grid_size[1] // 2 + 1, dim, 2))

    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Resamples the filter for maps of another size."""
        weight = resample_filter(self.complex_weight.detach(), self.grid_size, grid_size)
        self.complex_weight = nn.Parameter(weight, self.complex_weight.requires_grad)
        self.grid_size = grid_size

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, _ = x.shape
        dtype = compute_dtype(x.dtype)
        with without_autocast(x.device):
            weight = resample_filter(self.complex_weight, self.grid_size, (H, W)).to(dtype)
            spectrum = torch.fft.rfft2(to_nchw(x).to(dtype), norm="ortho")
            spectrum = spectrum * torch.view_as_complex(weight.contiguous()).permute(2, 0, 1)
            filtered = torch.fft.irfft2(spectrum, s=(H, W), norm="ortho")
        return to_nhwc(filtered).to(x.dtype)

    def extra_repr(self) -> str:
        return f"grid_size={self.grid_size}"


def resample_filter(weight: Tensor, old_size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """A global filter for another map size with the same kernel: trigonometric interpolation of the spectrum.

    A pixel's neighbours at the same offsets keep their weights. On a larger map the kernel, centred at offset 0, is
    padded with zeros; on a smaller one it wraps around. GFNet's authors interpolate the table of frequencies bilinearly
    (GFNet issue 16), which is similar for smooth spectra, but shifts frequencies by up to one bin and treats the last
    positive and the first negative frequency of an axis as neighbours.

    Args:
        weight: (h, w // 2 + 1, C, 2), real part first.
        old_size: (h, w).
        new_size: (H, W).

    Returns:
        (H, W // 2 + 1, C, 2), dtype of ``weight``; ``weight`` itself for equal sizes.
    """
    if new_size == old_size:
        return weight
    # Contiguous, because a model's layout may put the channels inside the complex numbers.
    spectrum = torch.view_as_complex(weight.to(compute_dtype(weight.dtype)).contiguous()).permute(2, 0, 1)
    kernel = torch.fft.irfft2(spectrum, s=old_size)
    for axis, (old, new) in enumerate(zip(old_size, new_size, strict=True), start=1):
        # Offsets 0, 1, ..., -2, -1 in the order of the FFT, each moved to its place on the new axis.
        offsets = torch.arange(old, device=weight.device)
        offsets = torch.where(offsets < (old + 1) // 2, offsets, offsets - old) % new
        shape = list(kernel.shape)
        shape[axis] = new
        kernel = kernel.new_zeros(shape).index_add(axis, offsets, kernel)
    return torch.view_as_real(torch.fft.rfft2(kernel)).permute(1, 2, 0, 3).to(weight.dtype)
