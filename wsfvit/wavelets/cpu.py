"""The Haar operators of `wsfvit.wavelets.reference` for eager execution: same arguments, layouts and values.

Sums and differences are written directly into one preallocated output, on a CPU a few images at a time, so that
intermediate results stay in the cache. Stacking moves every coefficient three times and is several times slower. The
arithmetic is the reference's: float32 or wider, with one cast when writing the output.

`torch.compile` and export cannot plan memory around ``out=``: they use the reference, or `compiled` on a GPU.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from wsfvit.wavelets.reference import NCHW_AXES, NHWC_AXES, Axes, compute_dtype, cut, is_channels_last
from wsfvit.wavelets.types import SwtMode

GROUP_ELEMENTS = 1 << 21


def haar_dwt2d(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, ceil(H/2), ceil(W/2)), see `reference.haar_dwt2d`."""
    B, C, H, W = x.shape
    h, w = (H + 1) // 2, (W + 1) // 2
    if is_channels_last(x):
        out = x.new_empty(B, 4, h, w, C)
        _dwt(x.permute(0, 2, 3, 1), out.unbind(1), NHWC_AXES)
        return out.permute(0, 1, 4, 2, 3)
    out = x.new_empty(B, 4, C, h, w)
    _dwt(x, out.unbind(1), NCHW_AXES)
    return out


def haar_idwt2d(y: Tensor, output_size: tuple[int, int]) -> Tensor:
    """(B, 4, C, h, w) -> (B, C, H, W), see `reference.haar_idwt2d`."""
    B, _, C, _, _ = y.shape
    channels_inside = y.permute(0, 1, 3, 4, 2)
    if channels_inside.is_contiguous() and not y.is_contiguous():
        out = y.new_empty(B, *output_size, C)
        _idwt(channels_inside, out, NHWC_AXES)
        return out.permute(0, 3, 1, 2)
    out = y.new_empty(B, C, *output_size)
    _idwt(y, out, NCHW_AXES)
    return out


def haar_swt2d(x: Tensor, mode: SwtMode, average: bool = False, flip_details: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, H, W), see `reference.haar_swt2d`."""
    B, C, H, W = x.shape
    if is_channels_last(x):
        out = x.new_empty(B, H, W, 4, C)
        _swt(x.permute(0, 2, 3, 1), out.unbind(3), mode, average, flip_details, NHWC_AXES)
        return out.permute(0, 3, 4, 1, 2)
    out = x.new_empty(B, 4, C, H, W)
    _swt(x, out.unbind(1), mode, average, flip_details, NCHW_AXES)
    return out


def haar_swt2d_adjoint(s: Tensor, mode: SwtMode, average: bool = False, flip_details: bool = False) -> Tensor:
    """(B, 4, C, H, W) -> (B, C, H, W), see `reference.haar_swt2d_adjoint`."""
    B, _, C, H, W = s.shape
    channels_inside = s.permute(0, 3, 4, 1, 2)
    if channels_inside.is_contiguous() and not s.is_contiguous():
        out = s.new_empty(B, H, W, C)
        _swt_adjoint(channels_inside.unbind(3), out, mode, average, flip_details, NHWC_AXES)
        return out.permute(0, 3, 1, 2)
    out = s.new_empty(B, C, H, W)
    _swt_adjoint(s.unbind(1), out, mode, average, flip_details, NCHW_AXES)
    return out


def haar_swt2d_affine_gelu(x: Tensor, factor: Tensor, summand: Tensor, periodic: bool, dtype: torch.dtype) -> Tensor:
    """(B, 3, H, W), (12,), (12,) -> (B, 12, H, W), see `triton.stem_operator.haar_swt2d_affine_gelu`."""
    wide = x.to(compute_dtype(x.dtype))
    doubled = 2 * haar_swt2d(wide, "periodic" if periodic else "zero").flatten(1, 2)
    y = torch.addcmul(summand.view(-1, 1, 1).to(wide.dtype), doubled, factor.view(-1, 1, 1).to(wide.dtype))
    return F.gelu(y, approximate="tanh").to(dtype).contiguous(memory_format=torch.channels_last)


def _dwt(x: Tensor, out: tuple[Tensor, ...], axes: Axes) -> None:
    height, width = axes
    dtype = compute_dtype(x.dtype)
    for images, cA, cH, cV, cD in _groups(x, *out):
        images = images.to(dtype)
        if images.shape[height] % 2 or images.shape[width] % 2:
            # Padding counts from the last axis: in NHWC the channels come first.
            channels = (0, 0) * (images.ndim - 1 - width)
            images = F.pad(images, (*channels, 0, images.shape[width] % 2, 0, images.shape[height] % 2))
        even_rows, odd_rows = cut(images, height, 0, step=2), cut(images, height, 1, step=2)
        # Rows first: they are contiguous, and only half as much data is then strided by columns.
        for combine, along_width, across in ((torch.add, cA, cV), (torch.sub, cH, cD)):
            rows = combine(even_rows, odd_rows).mul_(0.5)
            even, odd = cut(rows, width, 0, step=2), cut(rows, width, 1, step=2)
            torch.add(even, odd, out=along_width)
            torch.sub(even, odd, out=across)


def _idwt(y: Tensor, out: Tensor, axes: Axes) -> None:
    height, width = axes
    dtype = compute_dtype(y.dtype)
    for subbands, images in _groups(y, out):
        cA, cH, cV, cD = subbands.to(dtype).unbind(1)
        for start, combine_rows in ((0, torch.add), (1, torch.sub)):
            rows = cut(images, height, start, step=2)
            low, high = (
                cut(combine_rows(first, second).mul_(0.5), height, 0, rows.shape[height])
                for first, second in ((cA, cH), (cV, cD))
            )
            for first_column, combine in ((0, torch.add), (1, torch.sub)):
                pixels = cut(rows, width, first_column, step=2)
                n = pixels.shape[width]
                combine(cut(low, width, 0, n), cut(high, width, 0, n), out=pixels)


def _groups(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of a few images at a time of tensors (B, ...), so that results fit the cache; all images on a GPU."""
    B = tensors[0].shape[0]
    group = min(max(B * GROUP_ELEMENTS // tensors[0].numel(), 1), B) if tensors[0].device.type == "cpu" else B
    for start in range(0, B, group):
        yield tuple(tensor[start : start + group] for tensor in tensors)


def _swt(x: Tensor, out: tuple[Tensor, ...], mode: SwtMode, average: bool, flip_details: bool, axes: Axes) -> None:
    height, width = axes
    dtype = compute_dtype(x.dtype)
    difference = _next_minus_own if flip_details else torch.sub
    for images, cA, cH, cV, cD in _groups(x, *out):
        rows = x.new_empty(_enlarged(images.shape, (height,)), dtype=dtype)
        half = x.new_empty(_enlarged(images.shape, axes), dtype=dtype)
        inside = cut(cut(half, height, None, -1), width, None, -1)
        torch.mul(images.to(dtype), 0.5, out=inside)
        if average:
            _divide_by_block_count(inside, mode, axes)
        _fill_margin(half, mode, axes)
        for combine, along_both, across in ((torch.add, cA, cH), (difference, cV, cD)):
            _combine_with_next(combine, half, width, rows)
            _combine_with_next(torch.add, rows, height, along_both)
            _combine_with_next(difference, rows, height, across)


def _swt_adjoint(
    subbands: tuple[Tensor, ...], out: Tensor, mode: SwtMode, average: bool, flip_details: bool, axes: Axes
) -> None:
    height, width = axes
    for images, *group in _groups(out, *subbands):
        cA, cH, cV, cD = (subband.to(compute_dtype(out.dtype)) for subband in group)
        low, high = _gather(cA, cH, height, mode, flip_details), _gather(cV, cD, height, mode, flip_details)
        x = _gather(low, high, width, mode, flip_details).mul_(0.5)
        if average:
            _divide_by_block_count(x, mode, axes)
        images.copy_(x)


def _combine_with_next(combine: Callable[..., Tensor], x: Tensor, axis: int, out: Tensor) -> None:
    """Sum or difference of each element and the next one on an axis, which becomes one shorter."""
    combine(cut(x, axis, None, -1), cut(x, axis, 1), out=out)


def _next_minus_own(own: Tensor, following: Tensor, *, out: Tensor) -> Tensor:
    return torch.sub(following, own, out=out)


def _enlarged(shape: torch.Size, axes: tuple[int, ...]) -> list[int]:
    return [n + (axis in axes) for axis, n in enumerate(shape)]


def _fill_margin(x: Tensor, mode: SwtMode, axes: Axes) -> None:
    """In place: sets the last row and column to the border, zeros, or the first row and column if periodic."""
    for axis in axes:
        last = cut(x, axis, -1)
        if mode == "zero":
            last.zero_()
        else:
            last.copy_(cut(x, axis, 0, 1))


def _gather(total: Tensor, difference: Tensor, axis: int, mode: SwtMode, flip_details: bool) -> Tensor:
    """Adjoint of sum and difference with the next element: own block plus previous block."""
    x, previous = total + difference, total - difference
    if flip_details:
        x, previous = previous, x
    cut(x, axis, 1).add_(cut(previous, axis, None, -1))
    if mode == "periodic":
        cut(x, axis, 0, 1).add_(cut(previous, axis, -1))
    return x


def _divide_by_block_count(x: Tensor, mode: SwtMode, axes: Axes) -> None:
    """In place: divides by the number of 2x2 blocks that contain a pixel, one axis at a time."""
    for axis in axes:
        if mode == "periodic":
            x.mul_(0.5)
        else:
            cut(x, axis, 1).mul_(0.5)
