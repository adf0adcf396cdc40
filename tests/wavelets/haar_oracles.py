"""The Haar operators beside what PyWavelets says they are, and the inputs that the tests share."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from wsfvit.wavelets import SwtMode, haar_dwt2d, haar_idwt2d, haar_iswt2d, haar_swt2d


def pywt_dwt2(x: np.ndarray) -> np.ndarray:
    pywt = pytest.importorskip("pywt")
    cA, (cH, cV, cD) = pywt.dwt2(x, "haar", mode="zero")
    return np.stack((cA, cH, cV, cD), 1)


def pywt_idwt2(y: np.ndarray) -> np.ndarray:
    pywt = pytest.importorskip("pywt")
    return pywt.idwt2((y[:, 0], (y[:, 1], y[:, 2], y[:, 3])), "haar", mode="zero")


def pywt_swt2(x: np.ndarray, mode: str) -> np.ndarray:
    """pywt.swt2 is periodic and takes even sizes; a margin of what follows the image makes it serve any."""
    pywt = pytest.importorskip("pywt")
    H, W = x.shape[2:]
    margin = [(0, 0), (0, 0), (0, 2 - H % 2), (0, 2 - W % 2)]
    padded = np.pad(x, margin, mode="wrap") if mode == "periodic" else np.pad(x, margin)
    [(cA, (cH, cV, cD))] = pywt.swt2(padded, "haar", level=1, norm=False)
    return np.stack((cA, cH, cV, cD), 1)[..., :H, :W]


def pinv_iswt2(s: np.ndarray, mode: str) -> np.ndarray:
    """The Moore-Penrose inverse, from the dense matrix that PyWavelets' transform of every unit image gives."""
    B, _, C, H, W = s.shape
    matrix = pywt_swt2(np.eye(H * W).reshape(H * W, 1, H, W), mode).reshape(H * W, -1).T
    coefficients = np.moveaxis(s, 1, 2).reshape(B * C, -1)
    return (coefficients @ np.linalg.pinv(matrix).T).reshape(B, C, H, W)


@dataclass(frozen=True)
class Op:
    name: str
    function: Callable[[torch.Tensor], torch.Tensor]
    oracle: Callable[[np.ndarray], np.ndarray]
    inverse: bool = False
    decimated: bool = False

    def input_shape(self, B: int, C: int, H: int, W: int) -> tuple[int, ...]:
        return (B, 4, C, H, W) if self.inverse else (B, C, H, W)

    def output_shape(self, B: int, C: int, H: int, W: int) -> tuple[int, ...]:
        if self.inverse:
            return (B, C, 2 * H, 2 * W) if self.decimated else (B, C, H, W)
        return (B, 4, C, (H + 1) // 2, (W + 1) // 2) if self.decimated else (B, 4, C, H, W)

    def channels_last(self, x: torch.Tensor) -> torch.Tensor:
        """The same values with the channels innermost, as the operator's counterpart stores them."""
        order = (0, 2, 3, 1) if x.ndim == 4 else (0, 1, 3, 4, 2) if self.decimated else (0, 3, 4, 1, 2)
        return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])


FLIP = np.array([1.0, -1.0, -1.0, 1.0])[:, None, None, None]


def _swt_ops(mode: SwtMode, flip: bool) -> list[Op]:
    signs = FLIP if flip else np.ones_like(FLIP)
    name = f"swt_{mode}{'_flipped' if flip else ''}"
    return [
        Op(name, lambda x: haar_swt2d(x, mode, flip_details=flip), lambda x: pywt_swt2(x, mode) * signs),
        Op(
            f"i{name}",
            lambda s: haar_iswt2d(s, mode, flip_details=flip),
            lambda s: pinv_iswt2(s * signs, mode),
            inverse=True,
        ),
    ]


OPS = [
    Op("dwt", haar_dwt2d, pywt_dwt2, decimated=True),
    Op("idwt", haar_idwt2d, pywt_idwt2, decimated=True, inverse=True),
    *_swt_ops("zero", flip=False),
    *_swt_ops("zero", flip=True),
    *_swt_ops("periodic", flip=False),
    *_swt_ops("periodic", flip=True),
]


def normal(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
