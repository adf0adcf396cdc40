"""Wavelet transforms for images, and nothing else.

- `types`: named detail coefficients, the words for modes and backends.
- `reference`: the Haar operators in slicing and adds, the truth; what compilers and export see.
- `eager`: the same written into one preallocated output, what runs otherwise.
- `functional`: the public Haar functions: argument checks, autograd rules, the choice of backend.
- `backend`: that choice, by environment variable or context manager.
- `filterbank`: `dwt2d` and `idwt2d` for every discrete wavelet of PyWavelets.
- `modules`: `HaarDWT2d` and the others, which only call the functions.
- `compiled`: what torch.compile gets instead of the reference on a GPU.
- `triton_haar`, `triton_kernels`, `triton_stem`: fused CUDA kernels and what launches them; used where asked for.
- `stem_operator`: the operator of the last of them, the stem's transform with BatchNorm and GELU in evaluation.

Importing this package touches neither CUDA nor Triton nor PyWavelets.
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
