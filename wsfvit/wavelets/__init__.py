"""Wavelet transforms of images. Importing this package imports neither CUDA nor Triton nor PyWavelets.

Read `functional` (the public Haar functions) and `reference` (their formulas) first. Then:

- `cpu`: the Haar operators for eager execution; `compiled`: for torch.compile on a GPU;
  `triton/haar`, `triton/kernels`: as Triton kernels; `backend`: the choice between them.
- `triton/stem_operator`, `triton/stem`: the stem's transform, BatchNorm and GELU in evaluation as one operator.
- `filterbank`: `dwt2d` and `idwt2d` for any discrete wavelet of PyWavelets.
- `modules`: `HaarDWT2d` and the other modules, which only call the functions; `types`: coefficients, modes, backends.
"""

from wsfvit.wavelets.backend import resolve_backend, wavelet_backend
from wsfvit.wavelets.filterbank import dwt2d, idwt2d
from wsfvit.wavelets.functional import haar_dwt2d, haar_idwt2d, haar_iswt2d, haar_swt2d
from wsfvit.wavelets.modules import DWT2d, HaarDWT2d, HaarIDWT2d, HaarISWT2d, HaarSWT2d, IDWT2d
from wsfvit.wavelets.types import Backend, BoundaryMode, DetailCoeffs2d, SwtMode

__all__ = [
    "Backend",
    "BoundaryMode",
    "DWT2d",
    "DetailCoeffs2d",
    "HaarDWT2d",
    "HaarIDWT2d",
    "HaarISWT2d",
    "HaarSWT2d",
    "IDWT2d",
    "SwtMode",
    "dwt2d",
    "haar_dwt2d",
    "haar_idwt2d",
    "haar_iswt2d",
    "haar_swt2d",
    "idwt2d",
    "resolve_backend",
    "wavelet_backend",
]
