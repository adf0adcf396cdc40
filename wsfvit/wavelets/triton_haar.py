"""The Haar operators of `wsfvit.wavelets.reference` as fused Triton kernels: same arguments, layouts and values.

Each kernel reads its input from memory once and writes its output once. A program computes a tile of rows and columns,
where columns are what lies side by side in memory:

=============  ==========================================  =======================
layout         row                                         column
=============  ==========================================  =======================
NCHW           image, channel and line of the subband      pixel of the line
channels-last  image, line and pixel of the subband        channel
=============  ==========================================  =======================

Rows are counted through all images and channels, so that small maps fill a tile as well as large ones. Offsets are 64
bits wide; arithmetic is in float32, or float64 for float64. Inputs may have any strides; outputs are allocated here.

Importing this module imports Triton. With ``TRITON_INTERPRET=1`` in the environment the kernels run on a CPU, slowly.
"""

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl

from wsfvit.wavelets.reference import is_channels_last
from wsfvit.wavelets.types import SwtMode

# Elements of a tile of one subband, and the widest tile: 8 elements per thread, rows of at least 512 bytes in float16.
TILE = 1024
WIDEST = 256
# Above it rows are counted in 64 bits, which costs time; offsets always are.
ROWS_IN_32_BITS = 2**31


def haar_dwt2d(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, 4, C, ceil(H/2), ceil(W/2)), see `reference.haar_dwt2d`."""
    B, C, H, W = x.shape
    h, w = (H + 1) // 2, (W + 1) // 2
    inside = is_channels_last(x)
    y = x.new_empty(B, 4, h, w, C).permute(0, 1, 4, 2, 3) if inside else x.new_empty(B, 4, C, h, w)
    _launch(_haar_dwt2d_kernel, (x, y), (B, C, h, w), (H, W), inside)
    return y


def haar_idwt2d(y: torch.Tensor, output_size: tuple[int, int]) -> torch.Tensor:
    """(B, 4, C, h, w) -> (B, C, H, W), see `reference.haar_idwt2d`."""
    B, _, C, h, w = y.shape
    inside = y.permute(0, 1, 3, 4, 2).is_contiguous() and not y.is_contiguous()
    x = _new_image(y, C, *output_size, inside)
    _launch(_haar_idwt2d_kernel, (y, x), (B, C, h, w), output_size, inside)
    return x


def haar_swt2d(x: torch.Tensor, mode: SwtMode, average: bool = False, flip_details: bool = False) -> torch.Tensor:
    """(B, C, H, W) -> (B, 4, C, H, W), see `reference.haar_swt2d`."""
    B, C, H, W = x.shape
    inside = is_channels_last(x)
    s = x.new_empty(B, H, W, 4, C).permute(0, 3, 4, 1, 2) if inside else x.new_empty(B, 4, C, H, W)
    options = {"PERIODIC": mode == "periodic", "AVERAGE": average, "FLIP": flip_details}
    _launch(_haar_swt2d_kernel, (x, s), (B, C, H, W), (), inside, **options)
    return s


def haar_swt2d_adjoint(
    s: torch.Tensor, mode: SwtMode, average: bool = False, flip_details: bool = False
) -> torch.Tensor:
    """(B, 4, C, H, W) -> (B, C, H, W), see `reference.haar_swt2d_adjoint`."""
    B, _, C, H, W = s.shape
    inside = s.permute(0, 3, 4, 1, 2).is_contiguous() and not s.is_contiguous()
    x = _new_image(s, C, H, W, inside)
    options = {"PERIODIC": mode == "periodic", "AVERAGE": average, "FLIP": flip_details}
    _launch(_haar_swt2d_adjoint_kernel, (s, x), (B, C, H, W), (), inside, **options)
    return x


def _new_image(like: torch.Tensor, C: int, H: int, W: int, inside: bool) -> torch.Tensor:
    B = like.shape[0]
    return like.new_empty(B, H, W, C).permute(0, 3, 1, 2) if inside else like.new_empty(B, C, H, W)


def tile_of(columns: int) -> tuple[int, int]:
    """Rows and columns of a tile for lines of that many columns, powers of two."""
    width = min(triton.next_power_of_2(columns), WIDEST)
    return TILE // width, width


def _launch(
    kernel: Any,
    tensors: tuple[torch.Tensor, torch.Tensor],
    shape: tuple[int, int, int, int],
    sizes: tuple[int, ...],
    inside: bool,
    **options: bool,
) -> None:
    """Starts one program per tile of a subband of ``shape`` (B, C, h, w); ``inside``: channels are the columns."""
    B, C, h, w = shape
    row_count, columns = (B * h * w, C) if inside else (B * C * h, w)
    rows, width = tile_of(columns)
    source, target = tensors
    programs = triton.cdiv(row_count, rows) * triton.cdiv(columns, width)
    # Triton launches on the current device, which need not be the tensor's.
    with torch.cuda.device(source.device) if source.is_cuda else contextlib.nullcontext():
        kernel[(programs,)](
            source,
            target,
            C,
            h,
            w,
            *sizes,
            row_count,
            *source.stride(),
            *target.stride(),
            INSIDE=inside,
            WIDE_ROWS=row_count + rows >= ROWS_IN_32_BITS,
            DOUBLE=source.dtype == torch.float64,
            ROWS=rows,
            COLUMNS=width,
            **options,
        )


@triton.jit
def _coordinates(
    C, h, w, row_count, INSIDE: tl.constexpr, WIDE_ROWS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Image b, channel c, line i and pixel j of this program's tile, all int64; its first column; which elements exist.

    The first four broadcast to (ROWS, COLUMNS); what exists is told as (ROWS, 1) and (1, COLUMNS).
    """
    columns = C if INSIDE else w
    tiles_across = tl.cdiv(columns, COLUMNS)
    tile = tl.program_id(0)
    row_tile, column_tile = tile // tiles_across, tile % tiles_across
    if WIDE_ROWS:
        row_tile = row_tile.to(tl.int64)
    row = (row_tile * ROWS + tl.arange(0, ROWS))[:, None]
    column = (column_tile * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    if INSIDE:
        j, i, b, c = row % w, row // w % h, row // w // h, column
    else:
        i, c, b, j = row % h, row // h % C, row // h // C, column
    b, c, i, j = b.to(tl.int64), c.to(tl.int64), i.to(tl.int64), j.to(tl.int64)
    return b, c, i, j, column_tile.to(tl.int64) * COLUMNS, row < row_count, column < columns


@triton.jit
def _widen(x, DOUBLE: tl.constexpr):
    return x.to(tl.float64) if DOUBLE else x.to(tl.float32)


@triton.jit
def _split_pairs(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, 2 * COLUMNS) -> the even and the odd columns, (ROWS, COLUMNS) each."""
    return tl.split(tl.reshape(x, (ROWS, COLUMNS, 2)))


@triton.jit
def _haar_dwt2d_kernel(
    x_ptr,  # (B, C, H, W)
    y_ptr,  # (B, 4, C, h, w)
    C,
    h,
    w,
    H,
    W,
    row_count,
    x_b,
    x_c,
    x_h,
    x_w,
    y_b,
    y_k,
    y_c,
    y_h,
    y_w,
    INSIDE: tl.constexpr,
    WIDE_ROWS: tl.constexpr,
    DOUBLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    b, c, i, j, start, row_exists, column_exists = _coordinates(C, h, w, row_count, INSIDE, WIDE_ROWS, ROWS, COLUMNS)
    exists = row_exists & column_exists
    line = x_ptr + b * x_b + c * x_c + 2 * i * x_h
    lower = 2 * i + 1 < H
    if INSIDE:
        left, right = line + 2 * j * x_w, line + (2 * j + 1) * x_w
        inner = exists & (2 * j + 1 < W)
        p = _widen(tl.load(left, exists, 0.0), DOUBLE)
        q = _widen(tl.load(right, inner, 0.0), DOUBLE)
        r = _widen(tl.load(left + x_h, exists & lower, 0.0), DOUBLE)
        s = _widen(tl.load(right + x_h, inner & lower, 0.0), DOUBLE)
    else:
        # Both columns of every pair in one load: wide accesses, taken apart in registers.
        pixel = 2 * start + tl.arange(0, 2 * COLUMNS)[None, :]
        pair_exists = row_exists & (pixel < W)
        upper_line = _widen(tl.load(line + pixel * x_w, pair_exists, 0.0), DOUBLE)
        lower_line = _widen(tl.load(line + x_h + pixel * x_w, pair_exists & lower, 0.0), DOUBLE)
        p, q = _split_pairs(upper_line, ROWS, COLUMNS)
        r, s = _split_pairs(lower_line, ROWS, COLUMNS)
    upper_sum, lower_sum = (p + q) * 0.5, (r + s) * 0.5
    upper_difference, lower_difference = (p - q) * 0.5, (r - s) * 0.5
    y = y_ptr + b * y_b + c * y_c + i * y_h + j * y_w
    out = y_ptr.dtype.element_ty
    tl.store(y, (upper_sum + lower_sum).to(out), exists)
    tl.store(y + y_k, (upper_sum - lower_sum).to(out), exists)
    tl.store(y + 2 * y_k, (upper_difference + lower_difference).to(out), exists)
    tl.store(y + 3 * y_k, (upper_difference - lower_difference).to(out), exists)


@triton.jit
def _haar_idwt2d_kernel(
    y_ptr,  # (B, 4, C, h, w)
    x_ptr,  # (B, C, H, W)
    C,
    h,
    w,
    H,
    W,
    row_count,
    y_b,
    y_k,
    y_c,
    y_h,
    y_w,
    x_b,
    x_c,
    x_h,
    x_w,
    INSIDE: tl.constexpr,
    WIDE_ROWS: tl.constexpr,
    DOUBLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    b, c, i, j, start, row_exists, column_exists = _coordinates(C, h, w, row_count, INSIDE, WIDE_ROWS, ROWS, COLUMNS)
    exists = row_exists & column_exists
    y = y_ptr + b * y_b + c * y_c + i * y_h + j * y_w
    cA = _widen(tl.load(y, exists, 0.0), DOUBLE) * 0.5
    cH = _widen(tl.load(y + y_k, exists, 0.0), DOUBLE) * 0.5
    cV = _widen(tl.load(y + 2 * y_k, exists, 0.0), DOUBLE) * 0.5
    cD = _widen(tl.load(y + 3 * y_k, exists, 0.0), DOUBLE) * 0.5
    upper_sum, upper_difference = cA + cH, cV + cD
    lower_sum, lower_difference = cA - cH, cV - cD
    out = x_ptr.dtype.element_ty
    p, q = (upper_sum + upper_difference).to(out), (upper_sum - upper_difference).to(out)
    r, s = (lower_sum + lower_difference).to(out), (lower_sum - lower_difference).to(out)
    line = x_ptr + b * x_b + c * x_c + 2 * i * x_h
    lower = 2 * i + 1 < H
    if INSIDE:
        left, right = line + 2 * j * x_w, line + (2 * j + 1) * x_w
        inner = exists & (2 * j + 1 < W)
        tl.store(left, p, exists)
        tl.store(right, q, inner)
        tl.store(left + x_h, r, exists & lower)
        tl.store(right + x_h, s, inner & lower)
    else:
        pixel = 2 * start + tl.arange(0, 2 * COLUMNS)[None, :]
        pair_exists = row_exists & (pixel < W)
        tl.store(line + pixel * x_w, tl.reshape(tl.join(p, q), (ROWS, 2 * COLUMNS)), pair_exists)
        tl.store(line + x_h + pixel * x_w, tl.reshape(tl.join(r, s), (ROWS, 2 * COLUMNS)), pair_exists & lower)


@triton.jit
def _share(index, PERIODIC: tl.constexpr):
    """One over the number of blocks along an axis that hold the pixel ``index`` of it."""
    return tl.where((index == 0) & (not PERIODIC), 1.0, 0.5)


@triton.jit
def _haar_swt2d_kernel(
    x_ptr,  # (B, C, H, W)
    s_ptr,  # (B, 4, C, H, W)
    C,
    H,
    W,
    row_count,
    x_b,
    x_c,
    x_h,
    x_w,
    s_b,
    s_k,
    s_c,
    s_h,
    s_w,
    INSIDE: tl.constexpr,
    WIDE_ROWS: tl.constexpr,
    DOUBLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PERIODIC: tl.constexpr,
    AVERAGE: tl.constexpr,
    FLIP: tl.constexpr,
):
    b, c, i, j, _, row_exists, column_exists = _coordinates(C, H, W, row_count, INSIDE, WIDE_ROWS, ROWS, COLUMNS)
    exists = row_exists & column_exists
    # The first pixel follows the last one; where zeros follow, it is not loaded.
    below, beside = (i + 1) % H, (j + 1) % W
    has_below = exists if PERIODIC else exists & (i + 1 < H)
    has_beside = exists if PERIODIC else exists & (j + 1 < W)
    image = x_ptr + b * x_b + c * x_c
    p = _widen(tl.load(image + i * x_h + j * x_w, exists, 0.0), DOUBLE) * 0.5
    q = _widen(tl.load(image + i * x_h + beside * x_w, has_beside, 0.0), DOUBLE) * 0.5
    r = _widen(tl.load(image + below * x_h + j * x_w, has_below, 0.0), DOUBLE) * 0.5
    t = _widen(tl.load(image + below * x_h + beside * x_w, has_below & has_beside, 0.0), DOUBLE) * 0.5
    if AVERAGE:
        p *= _share(i, PERIODIC) * _share(j, PERIODIC)
        q *= _share(i, PERIODIC) * _share(beside, PERIODIC)
        r *= _share(below, PERIODIC) * _share(j, PERIODIC)
        t *= _share(below, PERIODIC) * _share(beside, PERIODIC)
    own_sum, below_sum = p + q, r + t
    own_difference, below_difference = p - q, r - t
    sign = -1.0 if FLIP else 1.0
    s = s_ptr + b * s_b + c * s_c + i * s_h + j * s_w
    out = s_ptr.dtype.element_ty
    tl.store(s, (own_sum + below_sum).to(out), exists)
    tl.store(s + s_k, (sign * (own_sum - below_sum)).to(out), exists)
    tl.store(s + 2 * s_k, (sign * (own_difference + below_difference)).to(out), exists)
    tl.store(s + 3 * s_k, (own_difference - below_difference).to(out), exists)


@triton.jit
def _haar_swt2d_adjoint_kernel(
    s_ptr,  # (B, 4, C, H, W)
    x_ptr,  # (B, C, H, W)
    C,
    H,
    W,
    row_count,
    s_b,
    s_k,
    s_c,
    s_h,
    s_w,
    x_b,
    x_c,
    x_h,
    x_w,
    INSIDE: tl.constexpr,
    WIDE_ROWS: tl.constexpr,
    DOUBLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PERIODIC: tl.constexpr,
    AVERAGE: tl.constexpr,
    FLIP: tl.constexpr,
):
    b, c, i, j, _, row_exists, column_exists = _coordinates(C, H, W, row_count, INSIDE, WIDE_ROWS, ROWS, COLUMNS)
    exists = row_exists & column_exists
    image = s_ptr + b * s_b + c * s_c
    x = tl.zeros((ROWS, COLUMNS), tl.float64 if DOUBLE else tl.float32)
    # A pixel belongs to its own block, the one above, the one to the left and the one above that.
    for up in tl.static_range(2):
        for left in tl.static_range(2):
            there = exists
            if not PERIODIC:
                there = exists & (i >= up) & (j >= left)
            s = image + (i - up + H) % H * s_h + (j - left + W) % W * s_w
            across = -1.0 if (up == 1) != FLIP else 1.0
            along = -1.0 if (left == 1) != FLIP else 1.0
            x += _widen(tl.load(s, there, 0.0), DOUBLE)
            x += across * _widen(tl.load(s + s_k, there, 0.0), DOUBLE)
            x += along * _widen(tl.load(s + 2 * s_k, there, 0.0), DOUBLE)
            x += across * along * _widen(tl.load(s + 3 * s_k, there, 0.0), DOUBLE)
    x *= 0.5
    if AVERAGE:
        x *= _share(i, PERIODIC) * _share(j, PERIODIC)
    tl.store(x_ptr + b * x_b + c * x_c + i * x_h + j * x_w, x.to(x_ptr.dtype.element_ty), exists)
