"""torch.compile by command-line flags, with this project's inductor settings."""

import argparse
from collections.abc import Iterable
from typing import Any

import torch
import yaml
from torch import nn

from wsfvit.utils.errors import UserError, first_line

# Limits (operators, tensors) up to which inductor recomputes a value that is used several times instead of storing it.
# torch's 30, 4 and 8 are just below the gradient of BatchNorm and GELU, which then takes sixteen passes over the widest
# feature maps instead of five. Inference gains nothing (docs/LOG.md, 2026-11-22).
GPU_TRAINING_OPTIONS = {
    "realize_opcount_threshold": 64,
    "realize_reads_threshold": 8,
    "realize_acc_reads_threshold": 16,
}


def compile_model(args: argparse.Namespace, model: nn.Module, training: bool = False) -> Any:
    """Compile the model as ``--torchcompile`` asks, for training or inference; without that flag return it unchanged.

    Raises:
        UserError: torch does not know the backend, mode, option or memory budget.
    """
    names = ("torchcompile", "torchcompile_mode", "torchcompile_options", "torchcompile_memory_budget")
    backend, mode, settings, budget = (vars(args).get(name) for name in names)
    if not backend:
        for flag, value in (("mode", mode), ("options", settings), ("memory-budget", budget)):
            if value is not None:
                raise UserError(f"--torchcompile-{flag} is an option of --torchcompile, which is off")
        return model
    how: dict[str, Any] = {"backend": backend, "mode": mode}
    if backend == "inductor":
        device = next((each.device.type for each in model.parameters()), "cpu")
        how = {"options": compile_options(device, training, mode, settings or ())}
        set_memory_budget(budget)
    elif settings or budget is not None:
        raise UserError(f"--torchcompile-options and --torchcompile-memory-budget are inductor's, not {backend}'s")
    try:
        return torch.compile(model, **how)
    except (RuntimeError, torch._dynamo.exc.InvalidBackend) as err:
        raise UserError(f"--torchcompile {backend}: {first_line(err)}") from err


def compile_options(device: str, training: bool, mode: str | None, settings: Iterable[str]) -> dict[str, Any]:
    """The ``options`` of `torch.compile`: this project's, overridden by those of a mode, then by the given ones.

    Args:
        device: "cuda", "cpu", ...
        training: Whether there will be a backward pass.
        mode: "reduce-overhead", "max-autotune", ...; None: "default".
        settings: NAME=VALUE each, see `read_compile_options`.

    Raises:
        UserError: inductor does not have the mode or an option.
    """
    modes = torch._inductor.list_mode_options()
    if mode and mode not in modes:
        raise UserError(f"--torchcompile-mode {mode}: inductor has {', '.join(modes)}")
    own = GPU_TRAINING_OPTIONS if training and device == "cuda" else {}
    return own | modes[mode or "default"] | read_compile_options(settings)


def read_compile_options(settings: Iterable[str]) -> dict[str, Any]:
    """Parse ``["max_autotune=true"]`` to ``{"max_autotune": True}``; raise a ``UserError`` for what inductor lacks."""
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--torchcompile-options: '{setting}' is not NAME=VALUE")
        if name not in torch._inductor.list_options():
            raise UserError(f"--torchcompile-options: torch._inductor.config has no '{name}'")
        options[name] = yaml.safe_load(value)
    return options


def set_memory_budget(share: float | None) -> None:
    """Set the fraction of activations that models compiled from now on save for the backward pass.

    1 is what the fastest code would save; the rest is recomputed, the cheapest first. 0: only the inputs of the
    compiled model; None: all.
    """
    torch._functorch.config.activation_memory_budget = 1.0 if share is None else share
