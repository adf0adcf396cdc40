"""Named detail coefficients, and the values of the arguments `mode` and backend."""

from typing import Literal, NamedTuple

from torch import Tensor

SwtMode = Literal["zero", "periodic"]
"""Border of the undecimated Haar transform: what follows the last row and column."""

BoundaryMode = Literal["zero", "constant", "symmetric", "reflect", "periodic", "periodization"]
"""Signal extension of `dwt2d` and `idwt2d`, as in PyWavelets."""

Backend = Literal["auto", "reference", "triton"]
"""Backend of the Haar operators."""


class DetailCoeffs2d(NamedTuple):
    """Detail coefficients of one level, in the order of PyWavelets.

    Named after the edges they detect: cH (horizontal) is low-pass along the width and high-pass along the height, cV
    (vertical) is high-pass along the width and low-pass along the height, cD (diagonal) is high-pass along both.
    """

    cH: Tensor
    cV: Tensor
    cD: Tensor
