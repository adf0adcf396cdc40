"""Choice of the backend of the Haar operators.

The environment variable ``WSFVIT_WAVELET_BACKEND`` (``auto``, ``reference`` or ``triton``) is read at import;
`wavelet_backend` overrides it temporarily. A backend selected by name runs or raises; there is no silent fallback.
``auto`` is ``triton`` on a GPU, with every kernel checked at its first use (`wsfvit.wavelets.triton.checked`), and
``reference`` elsewhere.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType
from typing import get_args

import torch

from wsfvit.wavelets import cpu
from wsfvit.wavelets.types import Backend

BACKENDS: tuple[str, ...] = get_args(Backend)
ENVIRONMENT_VARIABLE = "WSFVIT_WAVELET_BACKEND"

# Looked up here because torch.compile cannot trace it.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Per process, not per thread: autograd runs a CUDA backward in another thread.
_choice: str = os.environ.get(ENVIRONMENT_VARIABLE, "auto")


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(
            f"unknown wavelet backend {name!r}: {ENVIRONMENT_VARIABLE} and wavelet_backend() take 'auto', 'reference' "
            "or 'triton'"
        )


def resolve_backend(device: torch.device) -> str:
    """The backend that computes on ``device`` in eager mode: "reference" or "triton".

    Raises:
        ValueError: the selected name is unknown.
        RuntimeError: ``triton`` is selected, but ``device`` is not a CUDA device or Triton is not installed.
    """
    _check_name(_choice)
    if _choice != "triton":
        return "triton" if _choice == "auto" and device.type == "cuda" and _HAS_TRITON else "reference"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    problem = None
    if not _HAS_TRITON:
        problem = "Triton is not installed"
    elif device.type != "cuda" and not interpreted:
        problem = f"its kernels run on CUDA devices, not on '{device}'"
    if problem is not None:
        raise RuntimeError(
            f"wavelet backend 'triton' was asked for, but {problem}: "
            f"use 'auto' or 'reference' ({ENVIRONMENT_VARIABLE} or wavelet_backend())"
        )
    return "triton"


def eager_module(device: torch.device) -> ModuleType:
    """The module with the functions for eager execution on ``device``."""
    if resolve_backend(device) == "reference":
        return cpu
    if _choice == "auto":
        from wsfvit.wavelets.triton import checked

        return checked
    from wsfvit.wavelets.triton import haar

    return haar


def kernels_were_selected() -> bool:
    """Whether ``triton`` was selected by name."""
    return _choice == "triton"


@contextlib.contextmanager
def wavelet_backend(name: str) -> Iterator[None]:
    """Overrides the backend inside a ``with`` block, for the whole process.

    Raises:
        ValueError: ``name`` is not ``auto``, ``reference`` or ``triton``.
    """
    global _choice
    _check_name(name)
    before, _choice = _choice, name
    try:
        yield
    finally:
        _choice = before
