"""The token mixer of MWA: convolutions of wavelet coefficients and of the map."""

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, fx, nn

from wsfvit.wavelets import DetailCoeffs2d, DWT2d, IDWT2d, haar_dwt2d, haar_idwt2d

from .layout import to_nchw, to_nhwc

fx.wrap("haar_dwt2d")  # leaves of symbolic tracing in this file
fx.wrap("haar_idwt2d")

HAAR_NAMES = ("haar", "db1")
NUM_DETAILS = 3


class WaveletMixer(nn.Module):
    """Multiscale wavelet attention (Nekoozadeh et al., 2023), linear in the number of tokens::

        y = GELU(IDWT(GELU(filter(DWT(x)))) + GELU(conv1x1(x)) + GELU(conv3x3(x)))

    `filter` is a grouped 3x3 convolution of the approximation and a grouped 1x1 convolution of each detail band, of the
    last level only; finer details enter the inverse unchanged, so the transform stays invertible. The paper leaves the
    following open; these choices give the published parameters and multiply-accumulates:

    - Kernels and groups. The published multiply-accumulates are 13/g N C^2 per layer: 1x1 and 3x3 on all N tokens
      (1 + 9), 3x3 on the N/4 approximation coefficients (9/4), 1x1 on 3N/4 details (3/4), all grouped.
    - Shared kernels. The published parameters, also by the formula in the paper's first table, are 10/g C^2: one 3x3
      kernel for map and approximation, one 1x1 kernel for map and details. ``share_kernels=False`` has 20/g C^2.
    - The three details of a location have the same kernel and are not mixed (a 1x1x1 convolution over the bands).
    - Convolutions have a bias, torch's initialisation and zero padding.
    - Borders: zero padding for Haar, mode "periodization" for other wavelets. Both halve every size to ceil(n / 2).

    Args:
        dim: Channels C.
        groups: Groups of the 3x3 and of the 1x1 convolutions, or one number for both; divisors of C.
        level: Levels of the transform, at least 1.
        wavelet: Any discrete wavelet of PyWavelets.
        share_kernels: One 3x3 and one 1x1 kernel for both map and coefficients.

    Shape: (B, H, W, C) -> the same, any H and W.

    Raises:
        ValueError: Groups that do not divide C, a level below 1, an unknown wavelet.
    """

    def __init__(
        self,
        dim: int,
        groups: int | tuple[int, int] = (8, 8),
        level: int = 1,
        wavelet: str = "haar",
        share_kernels: bool = True,
    ) -> None:
        super().__init__()
        if level < 1:
            raise ValueError(f"MWA: level must be at least 1, not {level}")
        groups3, *groups1 = to_2tuple(groups)
        if len(groups1) != 1 or any(g < 1 or dim % g for g in (groups3, *groups1)):
            raise ValueError(
                f"MWA: groups {groups} must divide the width {dim}: one number, or one of 3x3 and one of 1x1"
            )
        self.level = level
        self.wavelet = wavelet
        conv3 = partial(nn.Conv2d, dim, dim, 3, padding=1, groups=groups3)
        conv1 = partial(nn.Conv2d, dim, dim, 1, groups=groups1[0])
        self.conv3, self.conv1 = conv3(), conv1()
        self.approx_conv = None if share_kernels else conv3()
        self.detail_conv = None if share_kernels else conv1()
        haar = wavelet in HAAR_NAMES
        self.dwt = None if haar else DWT2d(wavelet, level, mode="periodization")
        self.idwt = None if haar else IDWT2d(wavelet, mode="periodization")

    def forward(self, x: Tensor) -> Tensor:
        x = to_nchw(x)
        if self.dwt is None or self.idwt is None:
            scales = self._mix_haar(x, self.level)
        else:
            _, _, H, W = x.shape
            cA, details, *finer = self.dwt(x)
            cA, stacked = self._filter(cA, torch.stack(tuple(details), 1))
            scales = self.idwt([cA, DetailCoeffs2d(*stacked.unbind(1)), *finer], (H, W))
        y = F.gelu(scales + F.gelu(self.conv1(x)) + F.gelu(self.conv3(x)))
        return to_nhwc(y)

    def _mix_haar(self, x: Tensor, level: int) -> Tensor:
        _, _, H, W = x.shape
        y = haar_dwt2d(x)
        cA, details = y[:, 0], y[:, 1:]
        if level > 1:
            cA = self._mix_haar(cA, level - 1)
        else:
            cA, details = self._filter(cA, details)
        return haar_idwt2d(torch.cat((cA.unsqueeze(1), details), 1), (H, W))

    def _filter(self, cA: Tensor, details: Tensor) -> tuple[Tensor, Tensor]:
        """Convolution and GELU of approximation (B, C, h, w) and details (B, 3, C, h, w); keeps the dtype."""
        approx_conv = self.conv3 if self.approx_conv is None else self.approx_conv
        detail_conv = self.conv1 if self.detail_conv is None else self.detail_conv
        filtered = detail_conv(details.flatten(0, 1))
        if torch.compiler.is_compiling():
            # torch 2.11 plans wrong strides for the gradient of a GELU of five axes; eager saves a copy by them.
            filtered = F.gelu(filtered).unflatten(0, (-1, NUM_DETAILS))
        else:
            filtered = F.gelu(filtered.unflatten(0, (-1, NUM_DETAILS)))
        return F.gelu(approx_conv(cA)).to(cA.dtype), filtered.to(details.dtype)

    def extra_repr(self) -> str:
        return f"level={self.level}, wavelet={self.wavelet!r}, share_kernels={self.approx_conv is None}"
