"""The wavelet operators as modules, which only call the functions; these document shapes, dtypes and errors."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from wsfvit.wavelets import filterbank, functional
from wsfvit.wavelets.filterbank import CoeffsToInvert, WaveletCoeffs2d
from wsfvit.wavelets.types import BoundaryMode, SwtMode

if TYPE_CHECKING:
    import pywt


class HaarDWT2d(nn.Module):
    """`haar_dwt2d`: (B, C, H, W) -> (B, 4, C, ceil(H/2), ceil(W/2))."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.haar_dwt2d(x)


class HaarIDWT2d(nn.Module):
    """`haar_idwt2d`: (B, 4, C, h, w) -> (B, C, H, W)."""

    def forward(self, y: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        return functional.haar_idwt2d(y, output_size)


class _Undecimated(nn.Module):
    def __init__(self, mode: SwtMode = "zero") -> None:
        super().__init__()
        self.mode: SwtMode = mode

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"


class HaarSWT2d(_Undecimated):
    """`haar_swt2d`: (B, C, H, W) -> (B, 4, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.haar_swt2d(x, self.mode)


class HaarISWT2d(_Undecimated):
    """`haar_iswt2d`: (B, 4, C, H, W) -> (B, C, H, W)."""

    def forward(self, s: Tensor) -> Tensor:
        return functional.haar_iswt2d(s, self.mode)


class _Taps(nn.Module):
    """Two filters of a wavelet, read once, as a non-persistent buffer.

    ``.half()`` and ``.bfloat16()`` would round a buffer; here the taps keep the dtype of the arithmetic, and are built
    again for an input that needs a wider one (float64 in a float32 module).
    """

    taps: Tensor

    def __init__(self, lo: tuple[float, ...], hi: tuple[float, ...], wavelet: "str | pywt.Wavelet") -> None:
        super().__init__()
        self.wavelet_name = wavelet if isinstance(wavelet, str) else wavelet.name
        self._values = (lo, hi)
        self.register_buffer("taps", torch.tensor(self._values, dtype=torch.float32), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.taps = self._build(filterbank.arithmetic_dtype(self.taps))
        return self

    def _build(self, dtype: torch.dtype) -> Tensor:
        return torch.tensor(self._values, dtype=dtype, device=self.taps.device)

    def _taps_for(self, x: Tensor) -> Tensor:
        dtype = filterbank.arithmetic_dtype(x)
        return self.taps if self.taps.dtype == dtype else self._build(dtype)


class DWT2d(_Taps):
    """`dwt2d` with fixed wavelet, level and mode; see there for their values.

    Raises:
        ValueError: unknown wavelet or mode, ``level`` below 1.
    """

    def __init__(
        self, wavelet: "str | pywt.Wavelet" = "haar", level: int = 1, mode: BoundaryMode = "symmetric"
    ) -> None:
        bank = filterbank.filter_bank(wavelet)
        filterbank.check_mode("DWT2d", mode)
        filterbank.check_level("DWT2d", level)
        super().__init__(bank.dec_lo, bank.dec_hi, wavelet)
        self.level = level
        self.mode: BoundaryMode = mode

    def forward(self, x: Tensor) -> WaveletCoeffs2d:
        return filterbank.analyse(x, self._taps_for(x), self.level, self.mode)

    def extra_repr(self) -> str:
        return f"wavelet={self.wavelet_name!r}, level={self.level}, mode={self.mode!r}"


class IDWT2d(_Taps):
    """`idwt2d` with the wavelet and mode of the transform.

    Raises:
        ValueError: unknown wavelet or mode.
    """

    def __init__(self, wavelet: "str | pywt.Wavelet" = "haar", mode: BoundaryMode = "symmetric") -> None:
        bank = filterbank.filter_bank(wavelet)
        filterbank.check_mode("IDWT2d", mode)
        super().__init__(bank.rec_lo, bank.rec_hi, wavelet)
        self.mode: BoundaryMode = mode

    def forward(self, coeffs: CoeffsToInvert, output_size: tuple[int, int] | None = None) -> Tensor:
        taps = self._taps_for(filterbank.first_coefficients(coeffs))
        return filterbank.synthesise(coeffs, taps, self.mode, output_size)

    def extra_repr(self) -> str:
        return f"wavelet={self.wavelet_name!r}, mode={self.mode!r}"
