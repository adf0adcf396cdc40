"""Wavelet transforms of any discrete PyWavelets wavelet, as convolutions of the extended signal.

Along one axis the transform of a signal x of length n with a filter f of F taps is::

    coefficient[k] = sum_j f[j] * x[2k + s - j]

with x extended beyond its ends according to ``mode``. In mode "periodization" k runs over ceil(n/2) values and s = F/2;
in all others over floor((n + F - 1) / 2) values and s = 1. The inverse is the transposed convolution with the
reconstruction filters. In two dimensions the axes are transformed one after the other (Mallat 1989).

On a CPU, where convolutions of one channel are slow and matrix products are fast, images with short sides are
multiplied by the matrices of the transform: the convolution of the identity, borders included.

All operations are differentiable torch operations: arithmetic in float32 or wider, also under autocast (float64 on
CUDA, see `arithmetic_dtype`), one final cast to the input's dtype, any strides.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from wsfvit.wavelets.functional import check_maps
from wsfvit.wavelets.reference import compute_dtype
from wsfvit.wavelets.types import BoundaryMode, DetailCoeffs2d

if TYPE_CHECKING:
    import pywt

# Longest side for matrices: their cost per pixel grows with the side, that of a convolution does not.
MAX_MATRIX_SIDE = 256
# Fewest maps (images times channels) for which building the matrices is worth its cost.
MIN_MATRIX_MAPS = 8

WaveletCoeffs2d = list[Tensor | DetailCoeffs2d]
"""``[cA_n, DetailCoeffs2d_n, ..., DetailCoeffs2d_1]``, coarsest level first."""
CoeffsToInvert = Sequence[Tensor | Sequence[Tensor | None] | None]
"""``WaveletCoeffs2d`` in which a subband or all details of a level may be None, for zeros."""


class FilterBank(NamedTuple):
    """Taps of a wavelet: low and high pass of the transform (dec) and its inverse (rec), all of one length."""

    dec_lo: tuple[float, ...]
    dec_hi: tuple[float, ...]
    rec_lo: tuple[float, ...]
    rec_hi: tuple[float, ...]


def dwt2d(
    x: Tensor, wavelet: "str | pywt.Wavelet" = "haar", level: int = 1, mode: BoundaryMode = "symmetric"
) -> WaveletCoeffs2d:
    """Multi-level wavelet transform, ``pywt.wavedec2(x, wavelet, mode, level)``.

    ``cA, (cH, cV, cD) = dwt2d(x, "db2")`` is one level. More levels than `pywt.dwt_max_level` are allowed; their
    coefficients are mostly border. Mode "reflect" repeats a signal of length 1, an error in PyWavelets.

    Args:
        x: (B, C, H, W), floating, any strides, any H, W >= 1.
        wavelet: name or object of a discrete wavelet, see ``pywt.wavelist(kind="discrete")``.
        level: number of levels, at least 1.
        mode: zero, constant, symmetric, reflect, periodic or periodization.

    Returns:
        ``[cA_n, DetailCoeffs2d_n, ..., DetailCoeffs2d_1]``, each (B, C, h, w) in the dtype of ``x``. They are views of
        one result per level, mostly not contiguous: call ``.contiguous()`` before ``.view()``.

    Raises:
        ValueError: ``x`` is not 4-D, not floating, or has an empty axis; unknown wavelet or mode; ``level`` below 1.
    """
    bank = filter_bank(wavelet)
    taps = torch.tensor((bank.dec_lo, bank.dec_hi), dtype=arithmetic_dtype(x), device=x.device)
    return analyse(x, taps, level, mode)


def idwt2d(
    coeffs: CoeffsToInvert,
    wavelet: "str | pywt.Wavelet" = "haar",
    mode: BoundaryMode = "symmetric",
    output_size: tuple[int, int] | None = None,
) -> Tensor:
    """Inverse of `dwt2d`, ``pywt.waverec2(coeffs, wavelet, mode)``.

    Args:
        coeffs: ``[cA_n, (cH_n, cV_n, cD_n), ..., (cH_1, cV_1, cD_1)]``, each (B, C, h, w), floating, any strides, all
            of one dtype. A subband that is None, or a level that is None instead of its three, counts as zeros.
        wavelet, mode: those of the transform.
        output_size: (H, W) of the image. For an odd size the inverse is one longer and is cropped to it; by default the
            longer result is returned.

    Returns:
        (B, C, H, W) in the dtype of the coefficients.

    Raises:
        ValueError: invalid coefficients, or ones that do not fit each other, the wavelet or ``output_size``; unknown
            wavelet or mode.
    """
    bank = filter_bank(wavelet)
    first = first_coefficients(coeffs)
    taps = torch.tensor((bank.rec_lo, bank.rec_hi), dtype=arithmetic_dtype(first), device=first.device)
    return synthesise(coeffs, taps, mode, output_size)


def filter_bank(wavelet: "str | pywt.Wavelet") -> FilterBank:
    """Reads the taps of a discrete wavelet (another is a ValueError) from PyWavelets, or raises an ImportError."""
    if isinstance(wavelet, str):
        return _named_filter_bank(wavelet)
    try:
        dec_lo, dec_hi, rec_lo, rec_hi = (tuple(map(float, taps)) for taps in wavelet.filter_bank)
    except AttributeError as error:
        raise ValueError(f"wavelet must be a name or a pywt.Wavelet, not {wavelet!r}") from error
    return FilterBank(dec_lo, dec_hi, rec_lo, rec_hi)


def _named_filter_bank(name: str) -> FilterBank:
    return _read_filter_bank(name)


@functools.cache
def _read_filter_bank(name: str) -> FilterBank:
    try:
        import pywt

        wavelet = pywt.Wavelet(name)
    except ImportError as error:
        raise ImportError(f"wavelet {name!r} needs PyWavelets: pip install PyWavelets") from error
    except ValueError as error:
        raise ValueError(f"no discrete wavelet is called {name!r}, see pywt.wavelist(kind='discrete')") from error
    return filter_bank(wavelet)


# Equals torch.compiler.assume_constant_result: the compiler treats the taps as constants instead of tracing into
# PyWavelets. Set by hand, because that function imports the compiler and with it Triton.
_named_filter_bank._dynamo_marked_constant = True  # type: ignore[attr-defined]


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """float32 or wider; float64 on CUDA, where a float32 convolution is by default rounded to the 10 bits of TF32."""
    return torch.float64 if x.is_cuda else compute_dtype(x.dtype)


def analyse(x: Tensor, taps: Tensor, level: int, mode: BoundaryMode) -> WaveletCoeffs2d:
    """`dwt2d` with the taps (low and high pass, 2 x F) as a tensor in the dtype of the arithmetic."""
    check_maps("dwt2d", x)
    check_mode("dwt2d", mode)
    check_level("dwt2d", level)
    details: list[DetailCoeffs2d] = []
    with without_autocast(x.device):
        cA = x.to(taps.dtype)
        for _ in range(level):
            analyse_level = _analyse_by_matrices if _suits_matrices(cA, taps) else _analyse_by_convolution
            cA, cH, cV, cD = analyse_level(cA, taps, mode)
            details.append(DetailCoeffs2d(cH.to(x.dtype), cV.to(x.dtype), cD.to(x.dtype)))
    return [cA.to(x.dtype), *reversed(details)]


def synthesise(coeffs: CoeffsToInvert, taps: Tensor, mode: BoundaryMode, output_size: tuple[int, int] | None) -> Tensor:
    """`idwt2d` with the taps (low and high pass, 2 x F) as a tensor in the dtype of the arithmetic."""
    first = first_coefficients(coeffs)
    check_mode("idwt2d", mode)
    with without_autocast(first.device):
        cA = first.to(taps.dtype)
        for detail in coeffs[1:]:
            subbands = _read_details(detail, cA, first)
            # The level below an odd size gives one row or column too many.
            _, _, h, w = subbands[0].shape
            cA = _crop(cA, (h, w), "the details of the next level")
            synthesise_level = _synthesise_by_matrices if _suits_matrices(cA, taps, 2) else _synthesise_by_convolution
            cA = synthesise_level((cA, *(subband.to(cA.dtype) for subband in subbands)), taps, mode)
        if output_size is not None:
            if not isinstance(output_size, Sequence) or len(output_size) != 2:
                raise ValueError(f"idwt2d: output_size is (H, W), not {output_size!r}")
            cA = _crop(cA, output_size, "output_size")
    return cA.to(first.dtype)


def _suits_matrices(x: Tensor, taps: Tensor, scale: int = 1) -> bool:
    """Whether matrices are faster for images whose sides are ``scale`` times those of x (B, C, h, w)."""
    if x.device.type != "cpu" or taps.requires_grad:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        return False  # graphs stay valid for other sizes, and their operations can be counted
    B, C, h, w = x.shape
    return B * C >= MIN_MATRIX_MAPS and scale * max(h, w) <= MAX_MATRIX_SIDE


class _MatrixProduct(Function):
    """left @ x @ right, differentiable in x to any order; in the dtype of x also under autocast, backward included."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        with without_autocast(x.device):
            return left @ (x @ right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        left, right = ctx.saved_tensors
        return _multiply(grad, left.mT, right.mT), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _multiply(tangent, *ctx.saved_tensors)


def _multiply(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return cast(Tensor, _MatrixProduct.apply(x, left, right))  # type: ignore[no-untyped-call]


def _analyse_by_convolution(x: Tensor, taps: Tensor, mode: BoundaryMode) -> tuple[Tensor, ...]:
    """(B, C, H, W) -> cA, cH, cV, cD, each (B, C, h, w)."""
    B, C, H, W = x.shape
    # Every filter makes a pair (low, high): first along the width, then along the height of each of the two.
    rows = _analyse_axis(x.reshape(B * C, 1, H, W), taps, 3, mode)
    both = _analyse_axis(rows.reshape(B * C * 2, 1, H, rows.shape[3]), taps, 2, mode)
    return both.reshape(B, C, 4, both.shape[2], both.shape[3]).unbind(2)


def _analyse_by_matrices(x: Tensor, taps: Tensor, mode: BoundaryMode) -> tuple[Tensor, ...]:
    """As `_analyse_by_convolution`."""
    _, _, H, W = x.shape
    rows = _analysis_matrix(W, taps, mode)
    columns = rows if H == W else _analysis_matrix(H, taps, mode)
    # Low then high pass on either axis: the subbands are the quarters of the product.
    low, high = _multiply(x, columns.mT, rows).chunk(2, 2)
    (cA, cV), (cH, cD) = low.chunk(2, 3), high.chunk(2, 3)
    return cA, cH, cV, cD


def _analysis_matrix(n: int, taps: Tensor, mode: BoundaryMode) -> Tensor:
    """(n, 2 * count): maps a row of n samples to its low-pass coefficients, then its high-pass ones."""
    identity = torch.eye(n, dtype=taps.dtype, device=taps.device)
    return _analyse_axis(identity.view(n, 1, 1, n), taps, 3, mode).flatten(1)


def _synthesise_by_convolution(subbands: tuple[Tensor, ...], taps: Tensor, mode: BoundaryMode) -> Tensor:
    """cA, cH, cV, cD, each (B, C, h, w) -> (B, C, H, W)."""
    B, C, h, w = subbands[0].shape
    columns = _synthesise_axis(torch.stack(subbands, 2).reshape(B * C * 2, 2, h, w), taps, 2, mode)
    rows = _synthesise_axis(columns.reshape(B * C, 2, columns.shape[2], w), taps, 3, mode)
    return rows.reshape(B, C, rows.shape[2], rows.shape[3])


def _synthesise_by_matrices(subbands: tuple[Tensor, ...], taps: Tensor, mode: BoundaryMode) -> Tensor:
    """As `_synthesise_by_convolution`."""
    cA, cH, cV, cD = subbands
    _, _, h, w = cA.shape
    rows = _synthesis_matrix(w, taps, mode)
    columns = rows if h == w else _synthesis_matrix(h, taps, mode)
    quarters = torch.cat((torch.cat((cA, cV), 3), torch.cat((cH, cD), 3)), 2)
    return _multiply(quarters, columns.mT, rows)


def _synthesis_matrix(n: int, taps: Tensor, mode: BoundaryMode) -> Tensor:
    """(2 * n, samples): maps n low-pass coefficients, then n high-pass ones, to the samples."""
    identity = torch.eye(2 * n, dtype=taps.dtype, device=taps.device)
    return _synthesise_axis(identity.view(2 * n, 2, 1, n), taps, 3, mode).flatten(1)


def _analyse_axis(x: Tensor, taps: Tensor, axis: int, mode: BoundaryMode) -> Tensor:
    """(N, 1, H, W) -> (N, 2, H, W) with ``axis`` (2 or 3) halved."""
    n, length = x.shape[axis], taps.shape[1]
    # x[2k + s - j] for the first k and the last j is the leftmost sample, for the last k and the first j the rightmost.
    start = length // 2 if mode == "periodization" else 1
    count = (n + 1) // 2 if mode == "periodization" else (n + length - 1) // 2
    left, right = length - 1 - start, 2 * (count - 1) + start - (n - 1)
    if mode == "zero":
        x = F.pad(x, (left, right) if axis == 3 else (0, 0, left, right))
    else:
        x = x.index_select(axis, _extension(n, left, right, mode, x.device))
    kernel = taps.flip(1).unsqueeze(1)
    return F.conv2d(x, kernel.unsqueeze(5 - axis), stride=(1, 2) if axis == 3 else (2, 1))


def _synthesise_axis(y: Tensor, taps: Tensor, axis: int, mode: BoundaryMode) -> Tensor:
    """(N, 2, h, w) -> (N, 1, h, w) with ``axis`` (2 or 3) doubled."""
    n, length = y.shape[axis], taps.shape[1]
    if mode == "periodization":
        border = length // 4
        y = y.index_select(axis, _extension(n, border, border, "periodic", y.device))
        crop = 2 * border + length // 2 - 1
    else:
        crop = length - 2
        if 2 * n <= crop:
            raise ValueError(f"idwt2d: {n} coefficients are too few for a wavelet of {length} taps in mode {mode!r}")
    return F.conv_transpose2d(
        y,
        taps.unsqueeze(1).unsqueeze(5 - axis),
        stride=(1, 2) if axis == 3 else (2, 1),
        padding=(0, crop) if axis == 3 else (crop, 0),
    )


def _extension(n: int, left: int, right: int, mode: BoundaryMode, device: torch.device) -> Tensor:
    """For each sample of the extended signal, the index of the sample of the signal that it repeats."""
    index = torch.arange(-left, n + right, device=device)
    if mode == "constant":
        return index.clamp(0, n - 1)
    if mode == "symmetric":
        index = index % (2 * n)
        return torch.minimum(index, 2 * n - 1 - index)
    if mode == "reflect":
        period = max(2 * n - 2, 1)
        index = index % period
        return torch.minimum(index, period - index).clamp(max=n - 1)
    if mode == "periodization":
        # An odd signal is first extended by its last sample.
        return (index % (n + n % 2)).clamp(max=n - 1)
    return index % n


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Context in which autocast is disabled."""
    # Entered only under autocast, so that exported graphs contain only plain ops.
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _crop(x: Tensor, size: tuple[int, int], what: str) -> Tensor:
    """Drops the one row or column that an odd size adds."""
    _, _, H, W = x.shape
    if size[0] not in (H - 1, H) or size[1] not in (W - 1, W) or 0 in size:
        raise ValueError(
            f"idwt2d: {what} of size {tuple(size)} do not fit {(H, W)}, from which at most one row or column is cut"
        )
    return x[:, :, : size[0], : size[1]]


def check_mode(name: str, mode: str) -> None:
    if mode not in get_args(BoundaryMode):
        raise ValueError(f"{name}: mode must be one of {', '.join(get_args(BoundaryMode))}, not {mode!r}")


def check_level(name: str, level: int) -> None:
    if level < 1:
        raise ValueError(f"{name}: level must be at least 1, not {level}")


def first_coefficients(coeffs: CoeffsToInvert) -> Tensor:
    first = coeffs[0] if isinstance(coeffs, Sequence) and len(coeffs) > 1 else None
    if not isinstance(first, Tensor):
        raise ValueError("idwt2d: expected [cA_n, (cH_n, cV_n, cD_n), ..., (cH_1, cV_1, cD_1)]")
    if first.ndim != 4 or not first.is_floating_point() or 0 in first.shape:
        raise ValueError(
            "idwt2d: expected floating coefficients (B, C, h, w) without empty axes, "
            f"got shape {tuple(first.shape)}, {first.dtype}"
        )
    return first


def _read_details(detail: Any, cA: Tensor, first: Tensor) -> list[Tensor]:
    """Check (cH, cV, cD) of the level of ``cA``; None becomes zeros, in the shape of the others or of ``cA``."""
    detail = (None, None, None) if detail is None else detail
    three = isinstance(detail, Sequence) and len(detail) == 3
    present: list[Any] = [subband for subband in detail if subband is not None] if three else []
    if not three or not all(isinstance(subband, Tensor) for subband in present):
        raise ValueError("idwt2d: each level of details is (cH, cV, cD), tensors or None")
    shape = present[0].shape if present else cA.shape
    for subband in present:
        of_first = (subband.dtype, subband.device, subband.shape[:2]) == (first.dtype, first.device, first.shape[:2])
        if not of_first or subband.shape != shape or subband.ndim != 4:
            raise ValueError(
                f"idwt2d: coefficients do not fit each other: {tuple(subband.shape)}, {subband.dtype}, "
                f"{subband.device} beside {tuple(shape)} and {tuple(first.shape)}, {first.dtype}, {first.device}"
            )
    return [cA.new_zeros(shape) if subband is None else subband for subband in detail]
