"""The choice of backend: by name, by environment, never in silence."""

import os
import subprocess
import sys

import pytest
import torch

from wsfvit.wavelets import (
    backend,
    cpu,
    haar_dwt2d,
    haar_idwt2d,
    haar_iswt2d,
    haar_swt2d,
    resolve_backend,
    wavelet_backend,
)
from wsfvit.wavelets.triton import checked

CALLS = [
    lambda: haar_dwt2d(torch.ones(1, 1, 2, 2)),
    lambda: haar_idwt2d(torch.ones(1, 4, 1, 1, 1)),
    lambda: haar_swt2d(torch.ones(1, 1, 2, 2)),
    lambda: haar_iswt2d(torch.ones(1, 4, 1, 2, 2)),
]


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_reference_serves_a_cpu(name):
    with wavelet_backend(name):
        assert resolve_backend(torch.device("cpu")) == "reference"
        for call in CALLS:
            call()


def test_auto_takes_the_checked_kernels_on_a_gpu(monkeypatch):
    gpu = torch.device("cuda")
    with wavelet_backend("auto"):
        assert resolve_backend(gpu) == "triton" and backend.eager_module(gpu) is checked
        monkeypatch.setattr(backend, "_HAS_TRITON", False)
        assert resolve_backend(gpu) == "reference" and backend.eager_module(gpu) is cpu
    with wavelet_backend("reference"):
        assert resolve_backend(gpu) == "reference" and backend.eager_module(gpu) is cpu


def test_triton_raises_on_a_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with wavelet_backend("triton"):
        for call in (lambda: resolve_backend(torch.device("cpu")), *CALLS):
            with pytest.raises(RuntimeError, match="run on CUDA devices, not on 'cpu'.*'auto' or 'reference'"):
                call()


def test_triton_raises_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(backend, "_HAS_TRITON", False)
    with wavelet_backend("triton"), pytest.raises(RuntimeError, match="not installed.*'auto' or 'reference'"):
        resolve_backend(torch.device("cuda"))


def test_unknown_raises(device, monkeypatch):
    message = "'cuda'.*'auto', 'reference' or 'triton'"
    with pytest.raises(ValueError, match=message), wavelet_backend("cuda"):
        pass
    monkeypatch.setattr(backend, "_choice", "cuda")
    for call in (lambda: resolve_backend(device), *CALLS):
        with pytest.raises(ValueError, match=message):
            call()


def test_context_restores(device):
    before = backend._choice
    with pytest.raises(ZeroDivisionError), wavelet_backend("triton"):
        with wavelet_backend("reference"):
            assert resolve_backend(device) == "reference"
        raise ZeroDivisionError
    assert backend._choice == before


@pytest.mark.parametrize("name, outcome", [("reference", "reference"), ("triton", "RuntimeError"), ("x", "ValueError")])
def test_environment(name, outcome):
    """Also: the import brings in neither PyWavelets nor Triton, and starts no CUDA."""
    program = (
        "import sys, timm, torch; before = set(sys.modules); from wsfvit.wavelets import resolve_backend\n"
        "assert not {'pywt', 'triton'} & (sys.modules.keys() - before) and not torch.cuda.is_initialized()\n"
        "try: print(resolve_backend(torch.device('cpu')))\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    environment = {**os.environ, "WSFVIT_WAVELET_BACKEND": name, "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == outcome, result.stderr
