"""The choice of who computes the Haar operators.

The environment variable ``WSFVIT_WAVELET_BACKEND`` (``auto``, ``reference`` or ``triton``) is read when the package is
imported; `wavelet_backend` overrides it for a while. A backend that was asked for by name runs or raises: nothing falls
back in silence.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import get_args

import torch

from wsfvit.wavelets.types import Backend

BACKENDS: tuple[str, ...] = get_args(Backend)
ENVIRONMENT_VARIABLE = "WSFVIT_WAVELET_BACKEND"

# One choice for the process, not one per thread: autograd runs a CUDA backward in a thread of its own.
_choice: str = os.environ.get(ENVIRONMENT_VARIABLE, "auto")


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(
            f"unknown wavelet backend {name!r}: {ENVIRONMENT_VARIABLE} and wavelet_backend() take 'auto', 'reference' "
            "or 'triton'"
        )


def resolve_backend(device: torch.device) -> str:
    """Names the backend that computes on ``device``: what was asked for, with ``auto`` replaced by its choice.

    Raises:
        ValueError: the name is none of the three.
        RuntimeError: ``triton`` was asked for; its kernels are not in this version.
    """
    _check_name(_choice)
    if _choice == "triton":
        raise RuntimeError(
            "wavelet backend 'triton' was asked for, but its kernels are not in this version: "
            f"use 'auto' or 'reference' ({ENVIRONMENT_VARIABLE} or wavelet_backend())"
        )
    return "reference"


@contextlib.contextmanager
def wavelet_backend(name: str) -> Iterator[None]:
    """Overrides the environment's choice inside a ``with`` block, for the whole process.

    Raises:
        ValueError: ``name`` is none of ``auto``, ``reference``, ``triton``.
    """
    global _choice
    _check_name(name)
    before, _choice = _choice, name
    try:
        yield
    finally:
        _choice = before
