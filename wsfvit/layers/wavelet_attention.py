"""Wavelet attention (WA-CNN): a stride-2 downsampling whose details weight the channels of its approximation.

With the one-level subbands LL, LH, HL of a map x and the softmax over channels::

    out = LL + LL * softmax(LH + HL)

It has no parameters (Zhao et al., "Wavelet-Attention CNN for Image Classification", arXiv 2201.09271). The subbands are
correlations of x with the wavelet's reconstruction filters at every second pixel, with zero padding.
"""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from wsfvit.wavelets import DWT2d
from wsfvit.wavelets.filterbank import filter_bank
from wsfvit.wavelets.reference import compute_dtype


@register_notrace_module
class WaveletAttention(nn.Module):
    """The attended approximation and the plain one, for a shortcut (the authors' `wa`).

    Arithmetic in float32 or wider, also under autocast.

    Args:
        wavelet: Name of a discrete PyWavelets wavelet. Haar ("haar", "db1") uses sums and differences and does not
            import PyWavelets.

    Shape: (B, C, H, W) -> out and LL, each (B, C, ceil(H / 2), ceil(W / 2)), dtype of the input. A missing last row or
    column is zero.

    Raises:
        ValueError: Unknown wavelet.
    """

    def __init__(self, wavelet: str = "haar") -> None:
        super().__init__()
        self.wavelet = wavelet
        self.subbands: nn.Module = HaarSums() if wavelet in ("haar", "db1") else MirroredDWT2d(wavelet)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        approximation, detail = self.subbands(x.to(compute_dtype(x.dtype)))
        out = torch.addcmul(approximation, approximation, detail.softmax(1))
        return out.to(x.dtype), approximation.to(x.dtype)

    def extra_repr(self) -> str:
        return f"wavelet={self.wavelet!r}"


@register_notrace_module
class WaveletAttentionPool(WaveletAttention):
    """Only the attended approximation, instead of a pooling or a strided convolution (the authors' `wad`).

    Shape: (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)).
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class HaarSums(nn.Module):
    """LL and LH + HL of the Haar wavelet in closed form.

    For each block [[a, b], [c, d]] these are (a + b + c + d) / 2 and a - d, the sum of the horizontal and the vertical
    detail.

    Shape: (B, C, H, W) -> two of (B, C, ceil(H / 2), ceil(W / 2)).
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, _, H, W = x.shape
        if H % 2 or W % 2:
            x = F.pad(x, (0, W % 2, 0, H % 2))
        # The gradient of unbind is one stack; that of each strided slice would be a full map of zeros.
        left, right = x.unflatten(3, (-1, 2)).unbind(4)
        a, c = left.unflatten(2, (-1, 2)).unbind(3)
        b, d = right.unflatten(2, (-1, 2)).unbind(3)
        return ((a + b) + (c + d)) * 0.5, a - d


class MirroredDWT2d(nn.Module):
    """LL and LH + HL of any discrete wavelet, by the transform with mirrored reconstruction filters.

    Correlation with a filter of F taps is convolution with its mirror image. Coefficient k of `DWT2d` in mode "zero"
    starts F/2 - 1 samples before the one needed here: the surplus is cut off, and for odd F/2 - 1 the image is first
    shifted by one pixel, because coefficients are at every second pixel.

    Shape: (B, C, H, W) -> two of (B, C, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, wavelet: str) -> None:
        super().__init__()
        bank = filter_bank(wavelet)
        # Imported here: Haar models do not need it.
        import pywt

        synthesis = (bank.rec_lo, bank.rec_hi, bank.dec_lo, bank.dec_hi)
        mirrored = pywt.Wavelet(f"{wavelet} mirrored", [taps[::-1] for taps in synthesis])
        self.dwt = DWT2d(mirrored, mode="zero")
        early = len(bank.rec_lo) // 2 - 1
        self.shift = early % 2
        self.skip = (early + self.shift) // 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, _, H, W = x.shape
        if self.shift:
            x = F.pad(x, (1, 0, 1, 0))
        cA, (cH, cV, _) = self.dwt(x)
        rows, columns = (slice(self.skip, self.skip + (size + 1) // 2) for size in (H, W))
        return cA[:, :, rows, columns], (cH + cV)[:, :, rows, columns]
