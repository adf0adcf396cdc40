"""Reference implementation of the Haar operators, by slicing and addition; all others are tested against it.

A block of four neighbouring pixels [[a, b], [c, d]] becomes four coefficients::

    cA = (a + b + c + d) / 2      cH = (a + b - c - d) / 2
    cV = (a - b + c - d) / 2      cD = (a - b - c + d) / 2

Their 4x4 matrix is orthonormal and its own inverse (Mallat, "A Wavelet Tour of Signal Processing", 7.7). It is
computed one axis at a time: sum and difference along the width, then along the height, then one factor 1/2.

Arguments are checked in `wsfvit.wavelets.functional`. Any device, floating dtype and strides. Arithmetic in float32 or
wider, with one final cast to the input's dtype.

Memory layout: NCHW results are contiguous; channels-last inputs keep their channels innermost, see `haar_dwt2d` and
`haar_swt2d`. The arithmetic is written for any position of the two image axes, so both layouts share it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsfvit.wavelets.types import SwtMode

Axes = tuple[int, int]  # of rows and columns
NCHW_AXES = (2, 3)
NHWC_AXES = (1, 2)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def haar_dwt2d(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, ceil(H/2), ceil(W/2)); a missing last row or column counts as 0.

    A channels-last input gives a result stored as (B, 4, h, w, C).
    """
    if is_channels_last(x):
        subbands = _dwt(x.permute(0, 2, 3, 1), NHWC_AXES)
        return torch.stack(subbands, 1).to(x.dtype).contiguous().permute(0, 1, 4, 2, 3)
    return torch.stack(_dwt(x, NCHW_AXES), 1).to(x.dtype).contiguous()


def haar_idwt2d(y: Tensor, output_size: tuple[int, int]) -> Tensor:
    """(B, 4, C, h, w) -> (B, C, H, W) with (H, W) = output_size, at most (2h, 2w): inverse and adjoint of the DWT.

    Coefficients stored as (B, 4, h, w, C) give a channels-last result.
    """
    channels_inside = y.permute(0, 1, 3, 4, 2)
    if channels_inside.is_contiguous() and not y.is_contiguous():
        return _idwt(channels_inside, output_size, NHWC_AXES).to(y.dtype).contiguous().permute(0, 3, 1, 2)
    return _idwt(y, output_size, NCHW_AXES).to(y.dtype).contiguous()


def haar_swt2d(x: Tensor, mode: SwtMode, average: bool = False, flip_details: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, H, W): the four formulas on every 2x2 block, one per pixel.

    A channels-last input gives a result stored as (B, H, W, 4, C). With ``average`` each pixel is first divided by the
    number of blocks that contain it: the adjoint of the averaging inverse. ``flip_details`` takes the differences next
    minus own on both axes, which negates cH and cV.
    """
    if is_channels_last(x):
        subbands = swt_subbands(x.permute(0, 2, 3, 1), mode, average, flip_details, NHWC_AXES)
        return torch.stack(subbands, 3).to(x.dtype).contiguous().permute(0, 3, 4, 1, 2)
    return torch.stack(swt_subbands(x, mode, average, flip_details, NCHW_AXES), 1).to(x.dtype).contiguous()


def haar_swt2d_adjoint(s: Tensor, mode: SwtMode, average: bool = False, flip_details: bool = False) -> Tensor:
    """(B, 4, C, H, W) -> (B, C, H, W): each pixel is the sum over the inverses of the blocks that contain it.

    With ``average`` the sum is divided by the number of those blocks: the least-squares inverse. Coefficients stored as
    (B, H, W, 4, C) give a channels-last result.
    """
    channels_inside = s.permute(0, 3, 4, 1, 2)
    if channels_inside.is_contiguous() and not s.is_contiguous():
        subbands = channels_inside.movedim(3, 1)
        x = _swt_adjoint(subbands, mode, average, flip_details, NHWC_AXES)
        return x.to(s.dtype).contiguous().permute(0, 3, 1, 2)
    return _swt_adjoint(s, mode, average, flip_details, NCHW_AXES).to(s.dtype).contiguous()


def is_channels_last(x: Tensor) -> bool:
    """Whether an image (B, C, H, W) has its channels innermost and is not also contiguous."""
    return x.permute(0, 2, 3, 1).is_contiguous() and not x.is_contiguous()


def _dwt(x: Tensor, axes: Axes) -> tuple[Tensor, ...]:
    height, width = axes
    low, high = _sum_and_difference(*_even_and_odd(x.to(compute_dtype(x.dtype)), width))
    cA, cH = _sum_and_difference(*_even_and_odd(low, height))
    cV, cD = _sum_and_difference(*_even_and_odd(high, height))
    return cA * 0.5, cH * 0.5, cV * 0.5, cD * 0.5


def _idwt(y: Tensor, output_size: tuple[int, int], axes: Axes) -> Tensor:
    height, width = axes
    cA, cH, cV, cD = y.to(compute_dtype(y.dtype)).unbind(1)
    low = _interleave(*_sum_and_difference(cA, cH), height, output_size[0])
    high = _interleave(*_sum_and_difference(cV, cD), height, output_size[0])
    return _interleave(*_sum_and_difference(low, high), width, output_size[1]) * 0.5


def swt_subbands(x: Tensor, mode: SwtMode, average: bool, flip_details: bool, axes: Axes) -> tuple[Tensor, ...]:
    """cA, cH, cV, cD of `haar_swt2d`, in float32 or wider, of an image with rows and columns on ``axes``."""
    height, width = axes
    x = x.to(compute_dtype(x.dtype))
    if average:
        x = x / _block_count(x, mode, axes)
    low, high = _sum_and_difference(x, _shift(x, width, mode, forward=True))
    cA, cH = _sum_and_difference(low, _shift(low, height, mode, forward=True))
    cV, cD = _sum_and_difference(high, _shift(high, height, mode, forward=True))
    flip = -0.5 if flip_details else 0.5
    return cA * 0.5, cH * flip, cV * flip, cD * 0.5


def _swt_adjoint(s: Tensor, mode: SwtMode, average: bool, flip_details: bool, axes: Axes) -> Tensor:
    height, width = axes
    cA, cH, cV, cD = s.to(compute_dtype(s.dtype)).unbind(1)
    if flip_details:
        cH, cV = -cH, -cV
    low = _gather(cA, cH, height, mode)
    high = _gather(cV, cD, height, mode)
    x = _gather(low, high, width, mode) * 0.5
    return x / _block_count(x, mode, axes) if average else x


def _sum_and_difference(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return first + second, first - second


def cut(x: Tensor, axis: int, start: int | None, stop: int | None = None, step: int = 1) -> Tensor:
    """``x[start:stop:step]`` on one axis."""
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def _even_and_odd(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    even, odd = cut(x, axis, 0, step=2), cut(x, axis, 1, step=2)
    if x.shape[axis] % 2:
        odd = F.pad(odd, (0, 0) * (x.ndim - 1 - axis) + (0, 1))
    return even, odd


def _interleave(even: Tensor, odd: Tensor, axis: int, size: int) -> Tensor:
    both = torch.stack((even, odd), axis + 1).reshape(*even.shape[:axis], -1, *even.shape[axis + 1 :])
    return cut(both, axis, 0, size)


def _shift(x: Tensor, axis: int, mode: SwtMode, forward: bool) -> Tensor:
    """The next (``forward``) or the previous element of each; zero beyond the end, or the other end if periodic.

    Padded or rolled, not concatenated: torch.compile then computes a subband in one pass over the image.
    """
    if mode == "periodic":
        return torch.roll(x, -1 if forward else 1, axis)
    rest, padding = (cut(x, axis, 1), (0, 1)) if forward else (cut(x, axis, None, -1), (1, 0))
    return F.pad(rest, (0, 0) * (x.ndim - 1 - axis) + padding)


def _gather(low: Tensor, high: Tensor, axis: int, mode: SwtMode) -> Tensor:
    """Adjoint of sum and difference with the next element: the own block plus the previous one."""
    own, previous = _sum_and_difference(low, high)
    return own + _shift(previous, axis, mode, forward=False)


def _block_count(x: Tensor, mode: SwtMode, axes: Axes) -> Tensor:
    """Number of 2x2 blocks that contain each pixel, in a shape that broadcasts to ``x``."""
    if mode == "periodic":
        return x.new_full((), 4.0)
    per_axis = []
    for axis in axes:
        count = (torch.arange(x.shape[axis], device=x.device) > 0).to(x.dtype) + 1
        per_axis.append(count.view([-1 if dim == axis else 1 for dim in range(x.ndim)]))
    return per_axis[0] * per_axis[1]
