"""Whether a model and its baseline compute the same, asked before anything is timed."""

import torch
from torch import nn

OUTPUT_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3


def check_equal(name: str, ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Relative errors of output and gradients between a model and its baseline; a difference ends the program."""
    out, grads = _output_and_gradients(ours.eval(), x)
    want, want_grads = _output_and_gradients(theirs.eval(), x)
    found = {
        "output": _relative_error(out, want),
        "gradient": _relative_error(
            torch.cat([grads[key].flatten() for key in want_grads]),
            torch.cat([g.flatten() for g in want_grads.values()]),
        ),
    }
    # "not below" rather than "above", so that NaN fails too
    if not (found["output"] < OUTPUT_TOLERANCE and found["gradient"] < GRADIENT_TOLERANCE):
        raise SystemExit(f"{name} and its baseline differ: {found}; nothing was timed")
    return found


def check_equal_output(name: str, ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """The same for a model that computes no gradients: the relative error of the output alone."""
    with torch.inference_mode():
        error = _relative_error(ours.eval()(x), theirs.eval()(x))
    if not error < OUTPUT_TOLERANCE:
        raise SystemExit(f"{name} and its baseline differ: {error}; nothing was timed")
    return {"output": error}


def _output_and_gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    out = model(x)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(out.square().mean(), list(named.values()))
    return out.detach(), dict(zip(named, grads, strict=True))


def _relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.double(), want.double()
    return float((got - want).norm() / want.norm())
