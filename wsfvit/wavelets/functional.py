"""Haar operators on images: argument checks, choice of the backend, and one autograd rule per operator.

All keep the dtype of the input (float16, bfloat16, float32, float64) and compute in float32 or wider, also under
autocast. They are linear and save no tensor for the backward, which is an operator of the same family:

=================  ======================================================
operator           adjoint, hence backward
=================  ======================================================
DWT                IDWT (the transform is orthonormal)
IDWT               DWT
SWT                SWT adjoint (not the inverse: 4 times it when periodic)
SWT adjoint        SWT
=================  ======================================================

Each derivative, reverse and forward, uses the autograd rule itself, so derivatives of any order exist.
"""

from collections.abc import Callable
from typing import Any, cast, get_args

import torch
from torch import Tensor
from torch.autograd import Function

from wsfvit.wavelets import compiled, reference
from wsfvit.wavelets.backend import eager_module, resolve_backend
from wsfvit.wavelets.types import SwtMode


def haar_dwt2d(x: Tensor) -> Tensor:
    """Orthonormal Haar transform of one level, ``pywt.dwt2(x, "haar", mode="zero")`` as one tensor.

    With a = x[2i, 2j], b = x[2i, 2j+1], c = x[2i+1, 2j], d = x[2i+1, 2j+1]::

        cA = (a + b + c + d) / 2      cH = (a + b - c - d) / 2
        cV = (a - b + c - d) / 2      cD = (a - b - c + d) / 2

    A missing last row or column counts as 0, so for every H, W >= 1 energy is preserved, and `haar_idwt2d` with
    ``output_size=(H, W)`` is both inverse and adjoint.

    Args:
        x: (B, C, H, W), floating, any strides.

    Returns:
        (B, 4, C, ceil(H/2), ceil(W/2)) in the order cA, cH, cV, cD, dtype of ``x``. Contiguous, so that
        ``.flatten(0, 1)`` (subbands into the batch) and ``.flatten(1, 2)`` (subbands onto the channels) are views. For
        a channels-last ``x`` stored as (B, 4, h, w, C), so that ``.flatten(0, 1)`` is a channels-last view.

    Raises:
        ValueError: ``x`` is not 4-D, not floating, or has an empty axis.
    """
    check_maps("haar_dwt2d", x)
    resolve_backend(x.device)
    return _apply(_DWT, x)


def haar_idwt2d(y: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
    """Inverse of `haar_dwt2d`, and its adjoint.

    Args:
        y: (B, 4, C, h, w) in the order cA, cH, cV, cD, floating, any strides.
        output_size: (H, W) of the image, each twice that of ``y`` or one less; twice if not given.

    Returns:
        (B, C, H, W), dtype of ``y``; contiguous, or channels-last where ``y`` is stored as (B, 4, h, w, C).

    Raises:
        ValueError: ``y`` is not 5-D with 4 subbands, not floating, or has an empty axis; ``output_size`` does not fit.
    """
    check_maps("haar_idwt2d", y, subbands=True)
    resolve_backend(y.device)
    height, width = 2 * y.shape[-2], 2 * y.shape[-1]
    if output_size is not None:
        H, W = output_size
        if H not in (height - 1, height) or W not in (width - 1, width):
            raise ValueError(
                f"haar_idwt2d: output_size {(H, W)} does not fit coefficients of size {tuple(y.shape[-2:])}: "
                f"expected {height - 1} or {height} rows and {width - 1} or {width} columns"
            )
        height, width = H, W
    return _apply(_IDWT, y, (height, width))


def haar_swt2d(x: Tensor, mode: SwtMode = "zero", *, flip_details: bool = False) -> Tensor:
    """Undecimated (stationary) Haar transform of one level: the formulas of `haar_dwt2d` on the block of every pixel.

    With a = x[i, j], b = x[i, j+1], c = x[i+1, j], d = x[i+1, j+1]. In mode "periodic" it equals
    ``pywt.swt2(x, "haar", level=1, norm=False)``, which only takes even sizes; here any size is allowed. For even sizes
    every second coefficient per axis is the DWT.

    Args:
        x: (B, C, H, W), floating, any strides.
        mode: border after the last row and column: zeros, or the first row and column ("periodic").
        flip_details: negate cH and cV, at no cost, as a filter bank that convolves with [a, a] and [a, -a].

    Returns:
        (B, 4, C, H, W) in the order cA, cH, cV, cD, dtype of ``x``. Contiguous, so that ``.flatten(0, 1)`` and
        ``.flatten(1, 2)`` are views. For a channels-last ``x`` stored as (B, H, W, 4, C), so that ``.flatten(1, 2)``
        (subbands onto the channels) is a channels-last view.

    Raises:
        ValueError: ``x`` is not 4-D, not floating, or has an empty axis; ``mode`` is unknown.
    """
    check_maps("haar_swt2d", x)
    _check_swt_mode("haar_swt2d", mode)
    resolve_backend(x.device)
    return _apply(_SWT, x, mode, False, flip_details)


def haar_iswt2d(s: Tensor, mode: SwtMode = "zero", *, flip_details: bool = False) -> Tensor:
    """Least-squares (Moore-Penrose) inverse of `haar_swt2d`, exact for coefficients of an image.

    Each 2x2 block is inverted, and each pixel is the mean over the blocks that contain it: the adjoint divided by their
    number, 4 if periodic, else (1 in the first row, 2 below) x (1 in the first column, 2 to the right).

    Args:
        s: (B, 4, C, H, W) in the order cA, cH, cV, cD, floating, any strides.
        mode, flip_details: those of the forward transform.

    Returns:
        (B, C, H, W), dtype of ``s``; contiguous, or channels-last where ``s`` is stored as (B, H, W, 4, C).

    Raises:
        ValueError: ``s`` is not 5-D with 4 subbands, not floating, or has an empty axis; ``mode`` is unknown.
    """
    check_maps("haar_iswt2d", s, subbands=True)
    _check_swt_mode("haar_iswt2d", mode)
    resolve_backend(s.device)
    return _apply(_SWT_ADJOINT, s, mode, True, flip_details)


class _Rule(Function):
    """Autograd rule of one linear operator; built by `_linear_rule`."""

    plain: Callable[..., Tensor]  # the operator in traceable ops
    compiled: Callable[..., Tensor]  # the form for torch.compile on a GPU
    adjoint: "type[_Rule]"


def _apply(rule: type[_Rule], *arguments: Any) -> Tensor:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        # Compilers, export and tracers differentiate the plain ops: a rule is traced with a contiguous gradient, so a
        # channels-last model loses its layout; torch 2.11 silently loses the gradient of a rule with a no-op cast in
        # its forward; and operator counters cannot see into a rule.
        on_gpu = arguments[0].is_cuda and torch.compiler.is_compiling()
        return rule.compiled(*arguments) if on_gpu else rule.plain(*arguments)
    return cast(Tensor, rule.apply(*arguments))  # type: ignore[no-untyped-call]


def _linear_rule(name: str, operator: str, adjoint_arguments: Callable[..., tuple[Any, ...]]) -> type[_Rule]:
    """Builds the rule of a linear operator, called with a tensor and its other arguments; `adjoint` is set afterwards.

    Profilers and autograd graphs show ``name``; ``operator`` is the function in `reference`, `compiled` and the modules
    of the backends; ``adjoint_arguments`` maps the tensor's shape and the other arguments to those of the adjoint.
    """

    class Rule(_Rule):
        @staticmethod
        def forward(tensor: Tensor, *others: Any) -> Tensor:
            return cast(Tensor, getattr(eager_module(tensor.device), operator)(tensor, *others))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            tensor, *ctx.others = inputs
            ctx.adjoint_arguments = adjoint_arguments(tensor.shape, *ctx.others)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            return _apply(Rule.adjoint, grad, *ctx.adjoint_arguments), *(None for _ in ctx.others)

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
            return _apply(Rule, tangent, *ctx.others)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], tensor: Tensor, *others: Any) -> tuple[Tensor, int]:
            # The operators treat each image separately, so the mapped axis can be folded into the batch.
            result = _apply(Rule, tensor.movedim(in_dims[0], 0).flatten(0, 1), *others)
            return result.reshape(info.batch_size, -1, *result.shape[1:]), 0

    Rule.__name__ = Rule.__qualname__ = name
    Rule.plain, Rule.compiled = (staticmethod(getattr(module, operator)) for module in (reference, compiled))
    return Rule


# The SWT's argument ``average`` divides by the block counts: first in the SWT, last in its adjoint, which then is the
# least-squares inverse.
_DWT = _linear_rule("HaarDWT2d", "haar_dwt2d", lambda shape: (tuple(shape[2:]),))
_IDWT = _linear_rule("HaarIDWT2d", "haar_idwt2d", lambda shape, output_size: ())
_SWT = _linear_rule("HaarSWT2d", "haar_swt2d", lambda shape, *others: others)
_SWT_ADJOINT = _linear_rule("HaarSWT2dAdjoint", "haar_swt2d_adjoint", lambda shape, *others: others)
_DWT.adjoint, _IDWT.adjoint = _IDWT, _DWT
_SWT.adjoint, _SWT_ADJOINT.adjoint = _SWT_ADJOINT, _SWT


def check_maps(name: str, x: Tensor, subbands: bool = False) -> None:
    """Refuse anything but images (B, C, H, W), or ``subbands`` (B, 4, C, H, W), in an operator called ``name``."""
    fits = x.ndim == 5 and x.shape[1] == 4 if subbands else x.ndim == 4
    if not fits or not x.is_floating_point() or 0 in x.shape:
        expected = "(B, 4, C, H, W)" if subbands else "(B, C, H, W)"
        raise ValueError(
            f"{name}: expected a floating tensor {expected} without empty axes, got shape {tuple(x.shape)}, {x.dtype}"
        )


def _check_swt_mode(name: str, mode: str) -> None:
    if mode not in get_args(SwtMode):
        raise ValueError(f"{name}: mode must be 'zero' or 'periodic', not {mode!r}")
