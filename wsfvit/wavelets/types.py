"""Types of the wavelet room: named detail coefficients and the words the arguments may take."""

from typing import Literal, NamedTuple

import torch

SwtMode = Literal["zero", "periodic"]
"""Border of the undecimated Haar transform: what follows the last row and column."""

BoundaryMode = Literal["zero", "constant", "symmetric", "reflect", "periodic", "periodization"]
"""Signal extension of `dwt2d` and `idwt2d`, with the meaning PyWavelets gives to each name."""

Backend = Literal["auto", "reference", "triton"]
"""Who computes the Haar operators."""


class DetailCoeffs2d(NamedTuple):
    """Detail coefficients of one level, in the order of PyWavelets.

    The fields are named after the edges they answer to: cH (horizontal) is low along the width and high along the
    height, cV (vertical) is high along the width and low along the height, cD (diagonal) is high along both.
    """

    cH: torch.Tensor
    cV: torch.Tensor
    cD: torch.Tensor
