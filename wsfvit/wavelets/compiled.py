"""The Haar operators of `wsfvit.wavelets.reference` for torch.compile on a GPU: same arguments and layouts.

Inductor fuses a concatenation into a kernel that computes the elements of all parts for each output element and selects
one: four subbands cost four times the arithmetic, and the GPU is then limited by instructions, not by memory. Here the
DWT, its inverse and both gradients have no concatenation: one multiplication and one sum each for even sizes
(`tests/wavelets/test_compiled.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsfvit.wavelets import reference
from wsfvit.wavelets.reference import NCHW_AXES, compute_dtype, cut, haar_swt2d_adjoint, is_channels_last
from wsfvit.wavelets.types import SwtMode

__all__ = ["haar_dwt2d", "haar_idwt2d", "haar_swt2d", "haar_swt2d_adjoint"]

# Inductor does not fuse concatenations of more than eight parts; the maximum bounds the number of parts.
FEWEST_PLANES, MOST_PLANES = 9, 64


def haar_dwt2d(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, ceil(H/2), ceil(W/2)), see `reference.haar_dwt2d`."""
    if is_channels_last(x):
        return _dwt(x.permute(0, 2, 3, 1), 1).permute(0, 1, 4, 2, 3)
    return _dwt(x, 2)


def haar_idwt2d(y: Tensor, output_size: tuple[int, int]) -> Tensor:
    """(B, 4, C, h, w) -> (B, C, H, W), see `reference.haar_idwt2d`."""
    channels_inside = y.permute(0, 1, 3, 4, 2)
    if channels_inside.is_contiguous() and not y.is_contiguous():
        return _idwt(channels_inside, output_size, 1).permute(0, 3, 1, 2)
    return _idwt(y, output_size, 2)


def haar_swt2d(x: Tensor, mode: SwtMode, average: bool = False, flip_details: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, H, W), see `reference.haar_swt2d`; few channels are concatenated one by one."""
    C = x.shape[1]
    if is_channels_last(x) or not FEWEST_PLANES <= 4 * C <= MOST_PLANES:
        return reference.haar_swt2d(x, mode, average, flip_details)
    subbands = reference.swt_subbands(x, mode, average, flip_details, NCHW_AXES)
    planes = [plane.unsqueeze(1) for subband in subbands for plane in subband.to(x.dtype).unbind(1)]
    return torch.unflatten(torch.cat(planes, 1), 1, (4, C))


def _dwt(x: Tensor, axis: int) -> Tensor:
    """Rows and columns of the image are on ``axis`` and the next; the subbands' new axis is 1."""
    H, W = x.shape[axis], x.shape[axis + 1]
    if H % 2 or W % 2:
        x = F.pad(x, (0, 0) * (x.ndim - 2 - axis) + (0, W % 2, 0, H % 2))
    blocks = torch.unflatten(x.to(compute_dtype(x.dtype)), axis + 1, (-1, 2))
    blocks = torch.unflatten(blocks, axis, (-1, 2)).unsqueeze(1)
    return (blocks * _matrix(blocks, axis)).sum((axis + 2, axis + 4)).to(x.dtype)


def _idwt(y: Tensor, output_size: tuple[int, int], axis: int) -> Tensor:
    """Rows and columns of the result are on ``axis`` and the next, those of the subbands one later."""
    coefficients = y.to(compute_dtype(y.dtype)).unsqueeze(axis + 3).unsqueeze(axis + 2)
    blocks = (coefficients * _matrix(coefficients, axis)).sum(1)
    x = blocks.flatten(axis + 2, axis + 3).flatten(axis, axis + 1)
    return cut(cut(x, axis, 0, output_size[0]), axis + 1, 0, output_size[1]).to(y.dtype).contiguous()


def _matrix(like: Tensor, axis: int) -> Tensor:
    """The orthonormal matrix from a block's pixels to cA, cH, cV, cD, to be multiplied with (B, 4, .., h, 2, w, 2, ..).

    Computed from positions, so that the signs are constants of the compiled kernel and need no loads.
    """
    subband = torch.arange(4, device=like.device).view(4, 1, 1)
    row, column = torch.arange(2, device=like.device).view(2, 1), torch.arange(2, device=like.device)
    signs = (1 - 2 * (subband % 2) * row) * (1 - 2 * (subband // 2) * column)
    shape = (4, *(1,) * (axis - 1), 1, 2, 1, 2, *(1,) * (2 - axis))
    return (0.5 * signs.to(like.dtype)).view(shape)
