"""Triton kernel of `stem_operator`: Haar transform of RGB images, factor and summand per subband, GELU.

Images are read once and activations are written once. Arguments and tiles are those of `kernels`. A thread computes all
twelve activations of its pixels, so each sum of pixels is computed once.
"""

import triton
import triton.language as tl

from wsfvit.wavelets.triton.kernels import _at, _multiple, _step_down, _sum_and_difference, _tile


@triton.jit
def _load_three(pointer):
    return tl.load(pointer), tl.load(pointer + 1), tl.load(pointer + 2)


@triton.jit
def _sums_and_differences(x, beside, channel_stride, exists, beside_exists, GROUP: tl.constexpr):
    """Sums and differences of the pixels of a line and their right neighbours, in the three channels."""
    sum_r, difference_r = _sum_and_difference(x, beside, exists, beside_exists, 1.0, 1.0, GROUP, False)
    x += channel_stride
    beside += channel_stride
    sum_g, difference_g = _sum_and_difference(x, beside, exists, beside_exists, 1.0, 1.0, GROUP, False)
    x += channel_stride
    beside += channel_stride
    sum_b, difference_b = _sum_and_difference(x, beside, exists, beside_exists, 1.0, 1.0, GROUP, False)
    return (sum_r, sum_g, sum_b), (difference_r, difference_g, difference_b)


@triton.jit
def _gelu(x):
    """x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3); the constants are those of -2 log2(e) u / x."""
    # A squared reciprocal square root needs fewer instructions than a reciprocal.
    root = tl.rsqrt(1 + tl.exp2(x * (-2.302208198 - 0.1029432397 * x * x)))
    return x * root * root


@triton.jit
def _activations(above, below, sign: tl.constexpr, factor, summand, dtype: tl.constexpr):
    """Activations of a subband in the three channels."""
    r = _gelu((above[0] + sign * below[0]) * factor[0] + summand[0]).to(dtype)
    g = _gelu((above[1] + sign * below[1]) * factor[1] + summand[1]).to(dtype)
    b = _gelu((above[2] + sign * below[2]) * factor[2] + summand[2]).to(dtype)
    return r, g, b


@triton.jit
def _interleave(cA, cH, cV, cD):
    """Twelve (n,) -> (n, 16), the last four unused: sizes of a tile are powers of two.

    Joining pairs 8, 4, 2 and 1 elements apart puts them in order.
    """
    a = tl.join(tl.join(cA[0], cV[2]), tl.join(cH[1], cA[0]))  # 0 8 4 -
    b = tl.join(tl.join(cA[1], cD[0]), tl.join(cH[2], cA[0]))  # 1 9 5 -
    c = tl.join(tl.join(cA[2], cD[1]), tl.join(cV[0], cA[0]))  # 2 10 6 -
    d = tl.join(tl.join(cH[0], cD[2]), tl.join(cV[1], cA[0]))  # 3 11 7 -
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (cA[0].shape[0], 16))


@triton.jit
def haar_stem_kernel(
    x_ptr,  # (B, 3, H, W)
    factor_ptr, summand_ptr,  # (12,)
    y_ptr,  # (B, H, W, 12)
    h, w, strip_count, tiles_across,
    x_b, x_c, x_h, x_w,
    y_b, y_h,
    PERIODIC: tl.constexpr, GROUP: tl.constexpr, IMAGE_ALIGN: tl.constexpr, WIDE: tl.constexpr,
    LINES: tl.constexpr, STRIPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    size, x_strides = (1, 1, h, w, strip_count, tiles_across), (x_b, x_c, x_h, x_w)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    w = _multiple(w, GROUP)
    b, c, line, j = _tile(size, 1, False, WIDE, LINES, STRIPS, COLUMNS, COLUMNS, 1)
    x = _at(x_ptr, x_strides, b, c, line, j, IMAGE_ALIGN, False)
    # The constant 12, not a stride, tells the compiler the distance of the pixels.
    y = y_ptr + b * _multiple(y_b, 4) + line * _multiple(y_h, 4) + j * 12
    exists = j < w
    # The pixels that follow every GROUP columns.
    b, c, next_line, next_j = _tile(size, 1, False, WIDE, LINES, STRIPS, COLUMNS, COLUMNS // GROUP, GROUP)
    next_exists = next_j + GROUP < w
    if PERIODIC:
        next_j, next_exists = tl.where(next_exists, next_j, -GROUP), next_j < w
    beside = _at(x_ptr, x_strides, b, c, next_line, next_j + GROUP, IMAGE_ALIGN, False)
    x_c, x_h, y_h = _multiple(x_c, IMAGE_ALIGN), _multiple(x_h, IMAGE_ALIGN), _multiple(y_h, 4)
    plane = tl.cast(h, tl.int64) * x_h
    factor_A, factor_H = _load_three(factor_ptr), _load_three(factor_ptr + 3)
    factor_V, factor_D = _load_three(factor_ptr + 6), _load_three(factor_ptr + 9)
    summand_A, summand_H = _load_three(summand_ptr), _load_three(summand_ptr + 3)
    summand_V, summand_D = _load_three(summand_ptr + 6), _load_three(summand_ptr + 9)
    element = tl.arange(0, 16)[None, :]
    here, next_here = (line < h) & exists, (next_line < h) & next_exists
    total, difference = _sums_and_differences(x, beside, x_c, here, next_here, GROUP)
    for n in tl.static_range(LINES):
        x, beside, there, next_there = _step_down(x, beside, x_h, plane, line, next_line, n, h, PERIODIC)
        below_total, below_difference = _sums_and_differences(
            x, beside, x_c, there & exists, next_there & next_exists, GROUP
        )
        cA = _activations(total, below_total, 1.0, factor_A, summand_A, dtype)
        cH = _activations(total, below_total, -1.0, factor_H, summand_H, dtype)
        cV = _activations(difference, below_difference, 1.0, factor_V, summand_V, dtype)
        cD = _activations(difference, below_difference, -1.0, factor_D, summand_D, dtype)
        here = (line + n < h) & exists
        tl.store(y[:, None] + element, _interleave(cA, cH, cV, cD), here[:, None] & (element < 12))
        total, difference = below_total, below_difference
        y += y_h
