"""Wavelet attention (WA-CNN): a stride-2 downsampling whose details weigh the channels of its approximation.

With LL, LH, HL the one-level subbands of a map x and the softmax taken over channels::

    out = LL + LL * softmax(LH + HL)

It has no parameters (Zhao et al., "Wavelet-Attention CNN for Image Classification", arXiv 2201.09271). The subbands are
correlations of x with the wavelet's reconstruction filters at every second pixel, zeros outside the image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsfvit.wavelets import DWT2d
from wsfvit.wavelets.filterbank import filter_bank
from wsfvit.wavelets.reference import compute_dtype


class WaveletAttention(nn.Module):
    """Both the attended approximation and the plain one, which a shortcut takes (the authors' `wa`).

    Arithmetic in float32 or wider whatever autocast says; plain ops throughout.

    Args:
        wavelet: Name of a discrete PyWavelets wavelet. Haar ("haar", "db1") runs on sums and differences and does not
            import PyWavelets.

    Shape: (B, C, H, W) -> out and LL, each (B, C, ceil(H / 2), ceil(W / 2)), dtype of the input. A missing last row or
    column counts as zeros.

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


class WaveletAttentionPool(WaveletAttention):
    """The attended approximation alone, in place of a pooling or a strided convolution (the authors' `wad`).

    Shape: (B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)).
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class HaarSums(nn.Module):
    """LL and LH + HL of the Haar wavelet in closed form.

    Of every block [[a, b], [c, d]] these are (a + b + c + d) / 2 and a - d: the details across rows and across columns
    add up to a difference along the diagonal.

    Shape: (B, C, H, W) -> two of (B, C, ceil(H / 2), ceil(W / 2)).
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, _, H, W = x.shape
        if H % 2 or W % 2:
            x = F.pad(x, (0, W % 2, 0, H % 2))
        # Unbinding differentiates to one stack; each strided slice would to a map of zeros of its own.
        left, right = x.unflatten(3, (-1, 2)).unbind(4)
        a, c = left.unflatten(2, (-1, 2)).unbind(3)
        b, d = right.unflatten(2, (-1, 2)).unbind(3)
        return ((a + b) + (c + d)) * 0.5, a - d


class MirroredDWT2d(nn.Module):
    """LL and LH + HL of any discrete wavelet, by the transform whose filters are the mirrored reconstruction filters.

    Correlating with a filter of F taps is convolving with its mirror image. `DWT2d` in mode "zero" does that, but its
    coefficient k starts F/2 - 1 samples before the one wanted here: the surplus is cut off, and where F/2 - 1 is odd
    the image moves by one pixel first, since coefficients stand at every second one.

    Shape: (B, C, H, W) -> two of (B, C, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, wavelet: str) -> None:
        super().__init__()
        bank = filter_bank(wavelet)
        # Imported here: Haar models must not need it.
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
