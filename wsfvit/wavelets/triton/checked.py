"""The Haar operators of `wsfvit.wavelets.reference` for ``auto`` on a GPU: kernels that were checked, else plain forms.

Before its first use on a device, and with every dtype, layout and option, a kernel is compared with its plain form on
two small tensors, which takes milliseconds after compilation. A kernel with other values, or one that cannot be
compiled or launched, is reported once by name, and this process computes it with the plain form. Nothing is compared
while a CUDA graph is recorded: a kernel that was not used before is recorded as its plain form.

Importing this module does not import Triton; only a call does.
"""

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from wsfvit.utils.errors import first_line
from wsfvit.wavelets import cpu

OPERATORS = ("haar_dwt2d", "haar_idwt2d", "haar_swt2d", "haar_swt2d_adjoint", "haar_swt2d_affine_gelu")
SIZES = ((5, 7), (6, 16))  # a missing last row and column; lines that threads divide into fours
# Why the kernel of an operator is not used in this process.
failures: dict[str, str] = {}
_checked: set[tuple[Any, ...]] = set()


def _checked_operator(name: str) -> Callable[..., Tensor]:
    def operator(x: Tensor, *arguments: Any) -> Tensor:
        return cast(Tensor, getattr(_choose(name, x, arguments), name)(x, *arguments))

    operator.__name__ = operator.__qualname__ = name
    operator.__doc__ = f"See `cpu.{name}`."
    return operator


haar_dwt2d, haar_idwt2d, haar_swt2d, haar_swt2d_adjoint, haar_swt2d_affine_gelu = map(_checked_operator, OPERATORS)


def _choose(name: str, x: Tensor, arguments: tuple[Any, ...]) -> ModuleType:
    """The module that computes operator ``name``: that of the kernels, or `cpu`."""
    # Kernels need memory, which fake tensors and other subclasses do not have.
    if name in failures or type(x) not in (Tensor, nn.Parameter):
        return cpu
    channels_last = x.stride(-3) == 1 and x.shape[-3] > 1
    options = tuple(value for value in arguments if isinstance(value, (str, bool, torch.dtype)))
    key = (name, x.device, x.dtype, channels_last, *options)
    if key not in _checked:
        if _is_recorded(x):
            return cpu
        if problem := _compare(name, x.device, x.dtype, channels_last, options):
            failures[name] = problem
            text = f"the Triton kernel of {name} is not used on {x.device}: {problem}; this process computes the "
            text += "operator with plain PyTorch, as WSFVIT_WAVELET_BACKEND=reference does without this check"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            return cpu
        _checked.add(key)
    from wsfvit.wavelets.triton import haar

    return haar


def _is_recorded(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@torch.no_grad()
def _compare(
    name: str, device: torch.device, dtype: torch.dtype, channels_last: bool, options: tuple[Any, ...]
) -> str | None:
    """The error of a kernel that fails, or differs from the plain form in values, dtype or strides; else None."""
    for size in SIZES:
        x = _sample(2, 3, *size, device=device).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        arguments: tuple[Any, ...] = options
        if name == "haar_idwt2d":
            x, arguments = cpu.haar_dwt2d(x), (size,)
        elif name == "haar_swt2d_adjoint":
            x = cpu.haar_swt2d(x, options[0])
        elif name == "haar_swt2d_affine_gelu":
            arguments = (*_sample(2, 12, device=device).to(dtype), *options)
        expected = getattr(cpu, name)(x, *arguments)
        try:
            from wsfvit.wavelets.triton import haar

            torch.testing.assert_close(getattr(haar, name)(x, *arguments), expected, check_stride=True)
        except Exception as error:  # compilers and drivers raise anything
            return f"{dtype}, {type(error).__name__}: {first_line(error)}"
    return None


def _sample(*shape: int, device: torch.device) -> Tensor:
    """Values between -1 and 1 that leave the random generators alone."""
    return torch.arange(torch.Size(shape).numel(), device=device, dtype=torch.float64).mul(0.7).sin().view(shape)


def describe(device: torch.device) -> str:
    """Names of the transforms whose kernels pass the check in float32 on a device, and why the others do not."""
    for name in OPERATORS[:-1]:
        x = _sample(1, *((4,) if name in ("haar_idwt2d", "haar_swt2d_adjoint") else ()), 1, 2, 2, device=device).float()
        _choose(name, x, ("zero", False, False) if "swt" in name else ())
    used = [name for name in OPERATORS[:-1] if name not in failures]
    return "; ".join([", ".join(used) or "none", *(f"not {name}: {problem}" for name, problem in failures.items())])
