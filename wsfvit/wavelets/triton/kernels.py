"""The Triton kernels of `wsfvit.wavelets.triton.haar`, which describes the division into tiles and launches them.

Names of the arguments:

================  =====================================================================================
argument          meaning
================  =====================================================================================
x, y, s           image, decimated and undecimated coefficients; x_b, x_c, ... are strides in elements
outer, inner      channels as separate planes, and channels inside a plane: (C, 1) or (1, C)
h, w              size of a subband
strip_count       strips of all planes
tiles_across      tiles that cover the columns of a line
INSIDE            channels-last
IMAGE_ALIGN       elements of the widest access that divides all lines of the image
ALIGN             the same for the subbands
WIDE              strips or columns are counted in 64 bits
DOUBLE            arithmetic in float64, else in float32
LINES             lines of a strip
STRIPS, COLUMNS   size of a tile
GROUP             consecutive columns of a thread, which loads one neighbour for all of them: 4, or 1
ODD_H, ODD_W      the image lacks the last row or column of its blocks
================  =====================================================================================
"""

import triton
import triton.language as tl


@triton.jit
def _multiple(value, of: tl.constexpr):
    """``value`` as a multiple of ``of``, in a form that lets the compiler widen accesses."""
    return value // of * of


@triton.jit
def _tile(
    size, ALIGN: tl.constexpr, INSIDE: tl.constexpr, WIDE: tl.constexpr,
    LINES: tl.constexpr, STRIPS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Image, channel, first line and pixel of each element of this program's tile, in 64 bits.

    The tile is 1-D, strip by strip, with WIDTH elements of a strip, STEP columns apart (COLUMNS elements of a subband).
    """
    outer, inner, h, _, strip_count, tiles_across = size
    strip_tile, column_tile = tl.program_id(0) // tiles_across, tl.program_id(0) % tiles_across
    if WIDE:
        strip_tile, column_tile = strip_tile.to(tl.int64), column_tile.to(tl.int64)
    element = tl.arange(0, STRIPS * WIDTH)
    strip = strip_tile * STRIPS + element // WIDTH
    column = (column_tile * WIDTH + element % WIDTH) * STEP
    blocks = tl.cdiv(h, LINES)
    plane = strip // blocks
    b, c, j = plane // outer, plane % outer, column
    # Strips beyond the last begin below the map.
    line = tl.where(strip < strip_count, strip % blocks * LINES, h)
    if INSIDE:
        inner = _multiple(inner, ALIGN)
        # Both follow from `column`, but the compiler does not infer them.
        c = tl.max_contiguous(tl.multiple_of(column % inner, ALIGN), ALIGN)
        j = tl.max_constancy(column // inner, ALIGN)
    return b.to(tl.int64), c.to(tl.int64), line.to(tl.int64), j.to(tl.int64)


@triton.jit
def _at(pointer, strides, b, c, i, j, ALIGN: tl.constexpr, INSIDE: tl.constexpr):
    """Pointers to pixels (i, j) of channels c of images b."""
    b_stride, c_stride, h_stride, w_stride = strides
    line = pointer + b * _multiple(b_stride, ALIGN) + i * _multiple(h_stride, ALIGN)
    if INSIDE:
        return line + (j * _multiple(w_stride, ALIGN) + c * c_stride)
    else:
        return line + c * _multiple(c_stride, ALIGN) + j * w_stride


@triton.jit
def _load(pointer, exists, DOUBLE: tl.constexpr):
    """Loads in the dtype of the arithmetic; zero outside the map."""
    x = tl.load(pointer, exists, 0.0)
    return x.to(tl.float64) if DOUBLE else x.to(tl.float32)


@triton.jit
def _load_subbands(cA, subband_stride, exists, DOUBLE: tl.constexpr):
    # By repeated addition: multiples of the stride may need 64 bits where the stride does not.
    cH = cA + subband_stride
    cV = cH + subband_stride
    cD = cV + subband_stride
    return _load(cA, exists, DOUBLE), _load(cH, exists, DOUBLE), _load(cV, exists, DOUBLE), _load(cD, exists, DOUBLE)


@triton.jit
def _store_subbands(pointer, subband_stride, cA, cH, cV, cD, exists):
    dtype = pointer.dtype.element_ty
    tl.store(pointer, cA.to(dtype), exists)
    pointer += subband_stride
    tl.store(pointer, cH.to(dtype), exists)
    pointer += subband_stride
    tl.store(pointer, cV.to(dtype), exists)
    pointer += subband_stride
    tl.store(pointer, cD.to(dtype), exists)


@triton.jit
def _split_pairs(x):
    """(2 * n,) -> the even and the odd elements, (n,) each."""
    return tl.split(tl.reshape(x, (x.shape[0] // 2, 2)))


@triton.jit
def _join_pairs(even, odd):
    """Inverse of `_split_pairs`."""
    return tl.reshape(tl.join(even, odd), (2 * even.shape[0],))


@triton.jit
def _decimated(
    x_ptr, x_strides, y_ptr, y_strides, size, ODD_W: tl.constexpr,
    INSIDE: tl.constexpr, IMAGE_ALIGN: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr,
    LINES: tl.constexpr, STRIPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Pointers to the pixels and coefficients of a tile, their first lines of coefficients, masks of their columns.

    Channels-last pixels are the left ones of pairs, with another mask for the right ones. NCHW pixels are all of them,
    twice as many: wide accesses, whose pairs are split and joined in registers.
    """
    b, c, y_line, j = _tile(size, ALIGN, INSIDE, WIDE, LINES, STRIPS, COLUMNS, COLUMNS, 1)
    y = _at(y_ptr, y_strides, b, c, y_line, j, ALIGN, INSIDE)
    if INSIDE:
        w = size[3]
        y_exists = j < w
        x_line, pixel, x_exists, right_exists = y_line, 2 * j, y_exists, j < w - ODD_W
    else:
        w = _multiple(size[3], ALIGN)
        y_exists = j < w
        b, c, x_line, pixel = _tile(size, ALIGN, INSIDE, WIDE, LINES, STRIPS, COLUMNS, 2 * COLUMNS, 1)
        x_exists = pixel < 2 * w - ODD_W
        right_exists = x_exists
    x = _at(x_ptr, x_strides, b, c, 2 * x_line, pixel, IMAGE_ALIGN, INSIDE)
    return x, x_line, x_exists, right_exists, y, y_line, y_exists


@triton.jit
def haar_dwt2d_kernel(
    x_ptr,  # (B, C, H, W)
    y_ptr,  # (B, 4, C, h, w)
    outer, inner, h, w, strip_count, tiles_across,
    x_b, x_c, x_h, x_w,
    y_b, y_k, y_c, y_h, y_w,
    ODD_H: tl.constexpr, ODD_W: tl.constexpr,
    INSIDE: tl.constexpr, IMAGE_ALIGN: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr,
    DOUBLE: tl.constexpr, LINES: tl.constexpr, STRIPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    x, x_line, x_exists, right_exists, y, y_line, y_exists = _decimated(
        x_ptr, (x_b, x_c, x_h, x_w), y_ptr, (y_b, y_c, y_h, y_w), (outer, inner, h, w, strip_count, tiles_across),
        ODD_W, INSIDE, IMAGE_ALIGN, ALIGN, WIDE, LINES, STRIPS, COLUMNS,
    )  # fmt: skip
    x_h, y_k, y_h = _multiple(x_h, IMAGE_ALIGN), _multiple(y_k, ALIGN), _multiple(y_h, ALIGN)
    if INSIDE:
        x_w = _multiple(x_w, IMAGE_ALIGN)
    for n in tl.static_range(LINES):
        upper, lower = x_line + n < h, x_line + n < h - ODD_H
        if INSIDE:
            p, q = _load(x, upper & x_exists, DOUBLE), _load(x + x_w, upper & right_exists, DOUBLE)
            r, s = _load(x + x_h, lower & x_exists, DOUBLE), _load(x + x_h + x_w, lower & right_exists, DOUBLE)
        else:
            p, q = _split_pairs(_load(x, upper & x_exists, DOUBLE))
            r, s = _split_pairs(_load(x + x_h, lower & x_exists, DOUBLE))
        upper_sum, lower_sum = (p + q) * 0.5, (r + s) * 0.5
        upper_difference, lower_difference = (p - q) * 0.5, (r - s) * 0.5
        exists = (y_line + n < h) & y_exists
        cA, cH = upper_sum + lower_sum, upper_sum - lower_sum
        cV, cD = upper_difference + lower_difference, upper_difference - lower_difference
        _store_subbands(y, y_k, cA, cH, cV, cD, exists)
        x += x_h  # twice: 2 * x_h may need 64 bits where x_h does not
        x += x_h
        y += y_h


@triton.jit
def haar_idwt2d_kernel(
    y_ptr,  # (B, 4, C, h, w)
    x_ptr,  # (B, C, H, W)
    outer, inner, h, w, strip_count, tiles_across,
    y_b, y_k, y_c, y_h, y_w,
    x_b, x_c, x_h, x_w,
    ODD_H: tl.constexpr, ODD_W: tl.constexpr,
    INSIDE: tl.constexpr, IMAGE_ALIGN: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr,
    DOUBLE: tl.constexpr, LINES: tl.constexpr, STRIPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    x, x_line, x_exists, right_exists, y, y_line, y_exists = _decimated(
        x_ptr, (x_b, x_c, x_h, x_w), y_ptr, (y_b, y_c, y_h, y_w), (outer, inner, h, w, strip_count, tiles_across),
        ODD_W, INSIDE, IMAGE_ALIGN, ALIGN, WIDE, LINES, STRIPS, COLUMNS,
    )  # fmt: skip
    x_h, y_k, y_h = _multiple(x_h, IMAGE_ALIGN), _multiple(y_k, ALIGN), _multiple(y_h, ALIGN)
    if INSIDE:
        x_w = _multiple(x_w, IMAGE_ALIGN)
    for n in tl.static_range(LINES):
        exists = (y_line + n < h) & y_exists
        cA, cH, cV, cD = _load_subbands(y, y_k, exists, DOUBLE)
        upper_sum, upper_difference = (cA + cH) * 0.5, (cV + cD) * 0.5
        lower_sum, lower_difference = (cA - cH) * 0.5, (cV - cD) * 0.5
        out = x_ptr.dtype.element_ty
        p, q = (upper_sum + upper_difference).to(out), (upper_sum - upper_difference).to(out)
        r, s = (lower_sum + lower_difference).to(out), (lower_sum - lower_difference).to(out)
        upper, lower = x_line + n < h, x_line + n < h - ODD_H
        if INSIDE:
            tl.store(x, p, upper & x_exists)
            tl.store(x + x_w, q, upper & right_exists)
            tl.store(x + x_h, r, lower & x_exists)
            tl.store(x + x_h + x_w, s, lower & right_exists)
        else:
            tl.store(x, _join_pairs(p, q), upper & x_exists)
            tl.store(x + x_h, _join_pairs(r, s), lower & x_exists)
        x += x_h  # twice: 2 * x_h may need 64 bits where x_h does not
        x += x_h
        y += y_h


@triton.jit
def _share(index, PERIODIC: tl.constexpr):
    """One over the number of blocks along an axis that contain the pixel ``index``."""
    return tl.where((index == 0) & (not PERIODIC), 1.0, 0.5)


@triton.jit
def _next(x, beyond):
    """The next element of each; ``beyond`` has the elements after each group of four."""
    even, odd = _split_pairs(x)
    _, third = _split_pairs(even)
    return _join_pairs(odd, _join_pairs(third, beyond))


@triton.jit
def _previous(x, beyond):
    """The previous element of each; ``beyond`` has the elements before each group of four."""
    even, odd = _split_pairs(x)
    second, _ = _split_pairs(odd)
    return _join_pairs(_join_pairs(beyond, second), even)


@triton.jit
def _sum_and_difference(
    x, beside, exists, beside_exists, share, beside_share, GROUP: tl.constexpr, DOUBLE: tl.constexpr
):
    """Sum and difference of the pixels of a line and their right neighbours, times shares."""
    p = _load(x, exists, DOUBLE) * share
    q = _load(beside, beside_exists, DOUBLE) * beside_share
    if GROUP == 4:
        q = _next(p, q)
    return p + q, p - q


@triton.jit
def _step_down(x, beside, stride, plane, line, next_line, n: tl.constexpr, h, PERIODIC: tl.constexpr):
    """Pointers to the line below the ``n``-th of a strip, and its masks; if periodic the first follows the last."""
    x += stride
    beside += stride
    there, next_there = line + n + 1 < h, next_line + n + 1 < h
    if PERIODIC:
        x, beside = tl.where(there, x, x - plane), tl.where(next_there, beside, beside - plane)
        there, next_there = line + n < h, next_line + n < h
    return x, beside, there, next_there


@triton.jit
def haar_swt2d_kernel(
    x_ptr,  # (B, C, H, W)
    s_ptr,  # (B, 4, C, H, W)
    outer, inner, h, w, strip_count, tiles_across,
    x_b, x_c, x_h, x_w,
    s_b, s_k, s_c, s_h, s_w,
    PERIODIC: tl.constexpr, AVERAGE: tl.constexpr, FLIP: tl.constexpr, GROUP: tl.constexpr,
    INSIDE: tl.constexpr, IMAGE_ALIGN: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr,
    DOUBLE: tl.constexpr, LINES: tl.constexpr, STRIPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    size, x_strides = (outer, inner, h, w, strip_count, tiles_across), (x_b, x_c, x_h, x_w)
    w = w if INSIDE else _multiple(w, ALIGN)
    b, c, line, j = _tile(size, ALIGN, INSIDE, WIDE, LINES, STRIPS, COLUMNS, COLUMNS, 1)
    x = _at(x_ptr, x_strides, b, c, line, j, IMAGE_ALIGN, INSIDE)
    s = _at(s_ptr, (s_b, s_c, s_h, s_w), b, c, line, j, ALIGN, INSIDE)
    exists = j < w
    # The pixels that follow every GROUP columns.
    b, c, next_line, next_j = _tile(size, ALIGN, INSIDE, WIDE, LINES, STRIPS, COLUMNS, COLUMNS // GROUP, GROUP)
    next_exists = next_j + GROUP < w
    if PERIODIC:
        next_j, next_exists = tl.where(next_exists, next_j, -GROUP), next_j < w
    beside = _at(x_ptr, x_strides, b, c, next_line, next_j + GROUP, IMAGE_ALIGN, INSIDE)
    x_h, s_k, s_h = _multiple(x_h, IMAGE_ALIGN), _multiple(s_k, ALIGN), _multiple(s_h, ALIGN)
    plane = tl.cast(h, tl.int64) * x_h
    share, next_share, below_share = 0.5, 0.5, 1.0
    if AVERAGE:
        share, next_share, below_share = _share(j, PERIODIC) * 0.5, 0.25, 0.5
    total, difference = _sum_and_difference(
        x, beside, (line < h) & exists, (next_line < h) & next_exists, share, next_share, GROUP, DOUBLE
    )
    if AVERAGE:
        total, difference = total * _share(line, PERIODIC), difference * _share(line, PERIODIC)
    for n in tl.static_range(LINES):
        x, beside, there, next_there = _step_down(x, beside, x_h, plane, line, next_line, n, h, PERIODIC)
        below_total, below_difference = _sum_and_difference(
            x, beside, there & exists, next_there & next_exists, share, next_share, GROUP, DOUBLE
        )
        below_total, below_difference = below_total * below_share, below_difference * below_share
        sign = -1.0 if FLIP else 1.0
        cA, cH = total + below_total, sign * (total - below_total)
        cV, cD = sign * (difference + below_difference), difference - below_difference
        _store_subbands(s, s_k, cA, cH, cV, cD, (line + n < h) & exists)
        total, difference = below_total, below_difference
        s += s_h


@triton.jit
def _low_and_high(s, s_k, exists, FLIP: tl.constexpr, DOUBLE: tl.constexpr):
    """cA + cH, cA - cH, cV + cD and cV - cD; with ``FLIP`` of negated cH and cV."""
    cA, cH, cV, cD = _load_subbands(s, s_k, exists, DOUBLE)
    if FLIP:
        cH, cV = -cH, -cV
    return cA + cH, cA - cH, cV + cD, cV - cD


@triton.jit
def _to_upper_and_lower_pixels(
    s, beside, s_k, exists, beside_exists, GROUP: tl.constexpr, FLIP: tl.constexpr, DOUBLE: tl.constexpr
):
    """Contribution of a line of blocks, each with its left neighbour, to its upper and lower pixels."""
    upper_low, lower_low, upper_high, lower_high = _low_and_high(s, s_k, exists, FLIP, DOUBLE)
    upper, lower = upper_low + upper_high, lower_low + lower_high
    upper_right, lower_right = upper_low - upper_high, lower_low - lower_high
    upper_low, lower_low, upper_high, lower_high = _low_and_high(beside, s_k, beside_exists, FLIP, DOUBLE)
    upper_beside, lower_beside = upper_low - upper_high, lower_low - lower_high
    if GROUP == 4:
        upper_beside, lower_beside = _previous(upper_right, upper_beside), _previous(lower_right, lower_beside)
    return upper + upper_beside, lower + lower_beside


@triton.jit
def haar_swt2d_adjoint_kernel(
    s_ptr,  # (B, 4, C, H, W)
    x_ptr,  # (B, C, H, W)
    outer, inner, h, w, strip_count, tiles_across,
    s_b, s_k, s_c, s_h, s_w,
    x_b, x_c, x_h, x_w,
    PERIODIC: tl.constexpr, AVERAGE: tl.constexpr, FLIP: tl.constexpr, GROUP: tl.constexpr,
    INSIDE: tl.constexpr, IMAGE_ALIGN: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr,
    DOUBLE: tl.constexpr, LINES: tl.constexpr, STRIPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    size, s_strides = (outer, inner, h, w, strip_count, tiles_across), (s_b, s_c, s_h, s_w)
    w = w if INSIDE else _multiple(w, ALIGN)
    b, c, line, j = _tile(size, ALIGN, INSIDE, WIDE, LINES, STRIPS, COLUMNS, COLUMNS, 1)
    x = _at(x_ptr, (x_b, x_c, x_h, x_w), b, c, line, j, IMAGE_ALIGN, INSIDE)
    s = _at(s_ptr, s_strides, b, c, line, j, ALIGN, INSIDE)
    exists = j < w
    # The blocks before every GROUP columns.
    b, c, last_line, last_j = _tile(size, ALIGN, INSIDE, WIDE, LINES, STRIPS, COLUMNS, COLUMNS // GROUP, GROUP)
    last_exists = last_j < w
    if PERIODIC:
        last_j = tl.where(last_j > 0, last_j, w)
    else:
        last_exists = last_exists & (last_j > 0)
    beside = _at(s_ptr, s_strides, b, c, last_line, last_j - 1, ALIGN, INSIDE)
    x_h, s_k, s_h = _multiple(x_h, IMAGE_ALIGN), _multiple(s_k, ALIGN), _multiple(s_h, ALIGN)
    # The blocks of the line before the first, which contain pixels of the first.
    above, last_above = line < h, last_line < h
    if PERIODIC:
        to_last = tl.cast(h - 1, tl.int64) * s_h
        s_above = tl.where(line > 0, s - s_h, s + to_last)
        beside_above = tl.where(last_line > 0, beside - s_h, beside + to_last)
    else:
        s_above, beside_above = s - s_h, beside - s_h
        above, last_above = above & (line > 0), last_above & (last_line > 0)
    _, from_above = _to_upper_and_lower_pixels(
        s_above, beside_above, s_k, above & exists, last_above & last_exists, GROUP, FLIP, DOUBLE
    )
    for n in tl.static_range(LINES):
        here, last_here = (line + n < h) & exists, (last_line + n < h) & last_exists
        to_upper, to_lower = _to_upper_and_lower_pixels(s, beside, s_k, here, last_here, GROUP, FLIP, DOUBLE)
        value = (to_upper + from_above) * 0.5
        if AVERAGE:
            value *= _share(line + n, PERIODIC) * _share(j, PERIODIC)
        tl.store(x, value.to(x_ptr.dtype.element_ty), here)
        from_above = to_lower
        x += x_h
        s += s_h
        beside += s_h
