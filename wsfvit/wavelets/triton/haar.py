"""The Haar operators of `wsfvit.wavelets.reference` as fused Triton kernels: same arguments, layouts and values.

Each kernel reads its input once and writes its output once. The instructions per element then limit its speed, so
addresses are computed once for several lines, accesses are 8 or 16 bytes wide where the shapes allow it, and neighbours
already held by a thread are not loaded again. A program computes one tile:

=============  ==========================================  ===========================================
layout         plane                                       column: an element of a line of a plane
=============  ==========================================  ===========================================
NCHW           image and channel                           pixel
channels-last  image                                       pixel and channel, the channel running first
=============  ==========================================  ===========================================

A tile is a number of columns of a number of strips. A strip is ``LINES`` lines of a subband of one plane, computed one
after the other; strips are counted through all planes, so that small maps also fill a tile. Offsets have 64 bits;
arithmetic is in float32, or float64 for float64. Inputs may have any strides; outputs are allocated here.

Importing this module imports Triton. With ``TRITON_INTERPRET=1`` in the environment the kernels run on a CPU, slowly.
"""

import contextlib
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsfvit.wavelets.reference import is_channels_last
from wsfvit.wavelets.triton import kernels, stem
from wsfvit.wavelets.types import SwtMode

THREADS = 128
# Bytes of the widest access of a thread, and of the shortest part of a line in a tile.
ACCESS = 16
STRETCH = 128
# Elements of a line for each thread in the undecimated transforms; the kernels split lines into fours.
SWT_ELEMENTS = 4
# Lines of a strip, fewer if there would be fewer programs than PROGRAMS, about what a large GPU runs at once.
LINES = 8
PROGRAMS = 1024
# From here on strips and columns are counted in 64 bits, which costs time; offsets always have 64 bits.
COUNTED_IN_32_BITS = 2**31


class Launch(NamedTuple):
    """A kernel, its number of programs and its arguments."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


class Tiling(NamedTuple):
    """Division of maps: numbers of strips and of tiles across a line, number of programs, a kernel's constants."""

    counts: tuple[int, int]
    programs: int
    constants: dict[str, Any]


def haar_dwt2d(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, ceil(H/2), ceil(W/2)), see `reference.haar_dwt2d`."""
    B, C, H, W = x.shape
    h, w = (H + 1) // 2, (W + 1) // 2
    inside = is_channels_last(x)
    y = x.new_empty(B, 4, h, w, C).permute(0, 1, 4, 2, 3) if inside else x.new_empty(B, 4, C, h, w)
    _launch(kernels.haar_dwt2d_kernel, x, y, inside, _decimated_elements(x, inside), **_odd_sizes(H, W))
    return y


def haar_idwt2d(y: Tensor, output_size: tuple[int, int]) -> Tensor:
    """(B, 4, C, h, w) -> (B, C, H, W), see `reference.haar_idwt2d`."""
    inside = y.permute(0, 1, 3, 4, 2).is_contiguous() and not y.is_contiguous()
    x = _new_image(y, *output_size, inside)
    _launch(kernels.haar_idwt2d_kernel, y, x, inside, _decimated_elements(x, inside), **_odd_sizes(*output_size))
    return x


def haar_swt2d(x: Tensor, mode: SwtMode, average: bool = False, flip_details: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, H, W), see `reference.haar_swt2d`."""
    B, C, H, W = x.shape
    inside = is_channels_last(x)
    s = x.new_empty(B, H, W, 4, C).permute(0, 3, 4, 1, 2) if inside else x.new_empty(B, 4, C, H, W)
    options = _swt_options(x, inside, mode, average, flip_details)
    _launch(kernels.haar_swt2d_kernel, x, s, inside, SWT_ELEMENTS, **options)
    return s


def haar_swt2d_adjoint(s: Tensor, mode: SwtMode, average: bool = False, flip_details: bool = False) -> Tensor:
    """(B, 4, C, H, W) -> (B, C, H, W), see `reference.haar_swt2d_adjoint`."""
    inside = s.permute(0, 3, 4, 1, 2).is_contiguous() and not s.is_contiguous()
    x = _new_image(s, s.shape[3], s.shape[4], inside)
    options = _swt_options(x, inside, mode, average, flip_details)
    _launch(kernels.haar_swt2d_adjoint_kernel, s, x, inside, SWT_ELEMENTS, **options)
    return x


def haar_swt2d_affine_gelu(x: Tensor, factor: Tensor, summand: Tensor, periodic: bool, dtype: torch.dtype) -> Tensor:
    """(B, 3, H, W), (12,), (12,) -> (B, 12, H, W), see `stem_operator.haar_swt2d_affine_gelu`."""
    B, C, H, W = x.shape
    y = x.new_empty(B, H, W, 4 * C, dtype=dtype).permute(0, 3, 1, 2)
    tiling = _tiling(B, H, W, SWT_ELEMENTS, x.element_size())
    options = {"PERIODIC": periodic, "GROUP": _group(x), "IMAGE_ALIGN": _alignment(x, inside=False)}
    arguments = (x, factor, summand, y, H, W, *tiling.counts, *x.stride(), y.stride(0), y.stride(2))
    _start(Launch(stem.haar_stem_kernel, tiling.programs, arguments, tiling.constants | options))
    return y


def _new_image(subbands: Tensor, H: int, W: int, inside: bool) -> Tensor:
    B, _, C = subbands.shape[:3]
    return subbands.new_empty(B, H, W, C).permute(0, 3, 1, 2) if inside else subbands.new_empty(B, C, H, W)


def _decimated_elements(image: Tensor, inside: bool) -> int:
    # Half an access for NCHW: pairs of pixels fill one, loaded by the thread that computes with them.
    return (ACCESS if inside else ACCESS // 2) // image.element_size()


def _odd_sizes(H: int, W: int) -> dict[str, int]:
    return {"ODD_H": H % 2, "ODD_W": W % 2}


def _swt_options(x: Tensor, inside: bool, mode: SwtMode, average: bool, flip_details: bool) -> dict[str, int]:
    group = 1 if inside else _group(x)
    return {"PERIODIC": mode == "periodic", "AVERAGE": average, "FLIP": flip_details, "GROUP": group}


def _group(x: Tensor) -> int:
    # If four divides the lines, a thread holds the neighbours of three pixels and loads that of the fourth.
    return SWT_ELEMENTS if x.shape[3] % SWT_ELEMENTS == 0 and SWT_ELEMENTS * x.element_size() <= ACCESS else 1


def _launch(kernel: Any, source: Tensor, target: Tensor, inside: bool, elements: int, **options: int) -> None:
    """Starts one program per tile; ``inside``: channels-last, ``elements``: of a line of a subband, for each thread."""
    image, subbands = (source, target) if source.ndim == 4 else (target, source)
    B, _, C, h, w = subbands.shape
    outer, inner = (1, C) if inside else (C, 1)
    tiling = _tiling(B * outer, h, w * inner, elements, image.element_size())
    constants = {
        "INSIDE": inside,
        "IMAGE_ALIGN": _alignment(image, inside),
        "ALIGN": _alignment(subbands, inside),
        "DOUBLE": image.dtype == torch.float64,
    }
    size = (outer, inner, h, w, *tiling.counts)
    arguments = (source, target, *size, *source.stride(), *target.stride())
    _start(Launch(kernel, tiling.programs, arguments, constants | tiling.constants | options))


def _tiling(planes: int, h: int, length: int, elements: int, itemsize: int) -> Tiling:
    """For ``planes`` of ``h`` lines of ``length`` elements, of which each thread takes ``elements`` of a line."""
    strips, columns = tile_of(length, THREADS * elements, itemsize)
    tiles_across = _cdiv(length, columns)
    lines = lines_of(h, _cdiv(planes * h, strips) * tiles_across)
    strip_count = planes * _cdiv(h, lines)
    wide = max(strip_count + strips, length + columns) >= COUNTED_IN_32_BITS
    constants = {"WIDE": wide, "LINES": lines, "STRIPS": strips, "COLUMNS": columns}
    return Tiling((strip_count, tiles_across), _cdiv(strip_count, strips) * tiles_across, constants)


def _start(launch: Launch) -> None:
    device = launch.arguments[0].device
    # Triton launches on the current device, which need not be the tensor's.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        launch.kernel[(launch.programs,)](*launch.arguments, **launch.constants, num_warps=THREADS // 32)


def _cdiv(a: int, b: int) -> int:
    # Triton's cdiv takes microseconds.
    return -(-a // b)


@functools.cache
def tile_of(length: int, elements: int, itemsize: int) -> tuple[int, int]:
    """Strips and columns of a tile of ``elements`` elements, powers of two, for lines of ``length`` elements.

    The number of columns that covers a line with the least excess; the largest if there are several.
    """
    most = min(1 << (length - 1).bit_length(), elements)
    fewest = min(STRETCH // itemsize, most)
    candidates = [2**n for n in range(fewest.bit_length() - 1, most.bit_length())]
    columns = min(reversed(candidates), key=lambda columns: _cdiv(length, columns) * columns)
    return elements // columns, columns


def lines_of(h: int, programs: int) -> int:
    """Lines of a strip, a power of two, for maps of ``h`` lines and ``programs`` programs of one line each."""
    lines = LINES
    while lines > 1 and (lines >= 2 * h or programs // lines < PROGRAMS):
        lines //= 2
    return lines


def _alignment(tensor: Tensor, inside: bool) -> int:
    """Elements of the widest access that divides every line of ``tensor``, a power of two."""
    innermost = tensor.ndim - (3 if inside else 1)
    strides = [stride for axis, stride in enumerate(tensor.stride()) if axis != innermost]
    return math.gcd(ACCESS // tensor.element_size(), tensor.shape[innermost], *strides)
