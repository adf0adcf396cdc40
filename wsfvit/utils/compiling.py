"""torch.compile as the command line asks for it, and what this project sets otherwise than torch does."""

import argparse
from collections.abc import Iterable
from typing import Any

import torch
import yaml
from torch import nn

from wsfvit.utils.errors import UserError, first_line

# What is used more than once is written to memory and read again if it takes more operators, or tensors, than these to
# compute; up to them it is computed again. torch's 30, 4 and 8 are just below the gradient of BatchNorm and GELU, which
# then takes sixteen passes over the widest maps of a model instead of five. Inference gains nothing (docs/LOG.md,
# 2026-11-22).
GPU_TRAINING_OPTIONS = {
    "realize_opcount_threshold": 64,
    "realize_reads_threshold": 8,
    "realize_acc_reads_threshold": 16,
}


def compile_model(args: argparse.Namespace, model: nn.Module, training: bool = False) -> Any:
    """The model as ``--torchcompile`` asks for it, to be trained or not; without that flag the model itself.

    Raises:
        UserError: a compiler backend, mode, option or memory budget that torch does not know.
    """
    backend, mode, settings, budget = (
        vars(args).get(f"torchcompile{each}") for each in ("", "_mode", "_options", "_memory_budget")
    )
    if not backend:
        for flag, value in (("mode", mode), ("options", settings), ("memory-budget", budget)):
            if value is not None:
                raise UserError(f"--torchcompile-{flag} is an option of --torchcompile, which is off")
        return model
    if backend != "inductor":
        if settings or budget is not None:
            raise UserError(f"--torchcompile-options and --torchcompile-memory-budget are inductor's, not {backend}'s")
        try:
            return torch.compile(model, backend=backend, mode=mode)
        except (RuntimeError, torch._dynamo.exc.InvalidBackend) as err:
            raise UserError(f"--torchcompile {backend}: {first_line(err)}") from err
    device = next((each.device.type for each in model.parameters()), "cpu")
    options = compile_options(device, training, mode, settings or ())
    set_memory_budget(budget)
    try:
        return torch.compile(model, options=options)
    except RuntimeError as err:
        raise UserError(f"--torchcompile inductor: {first_line(err)}") from err


def compile_options(device: str, training: bool, mode: str | None, settings: Iterable[str]) -> dict[str, Any]:
    """What `torch.compile` takes as ``options``: this project's, over them those of a mode, then the given ones.

    Args:
        device: "cuda", "cpu", ...
        training: Whether there will be a backward pass.
        mode: "reduce-overhead", "max-autotune", ...; None: "default".
        settings: NAME=VALUE each, see `read_compile_options`.

    Raises:
        UserError: a mode or an option that inductor does not have.
    """
    modes = torch._inductor.list_mode_options()
    if mode and mode not in modes:
        raise UserError(f"--torchcompile-mode {mode}: inductor has {', '.join(modes)}")
    own = GPU_TRAINING_OPTIONS if training and device == "cuda" else {}
    return own | modes[mode or "default"] | read_compile_options(settings)


def read_compile_options(settings: Iterable[str]) -> dict[str, Any]:
    """Reads settings of inductor: ``["max_autotune=true"]`` -> ``{"max_autotune": True}``.

    Raises:
        UserError: one that is not NAME=VALUE, or that inductor does not have.
    """
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
    """Tells the compiler what share of the activations compiled training may save; holds for all compiled later.

    Args:
        share: Of what it would save to be fastest; the rest is computed again in the backward pass, what costs least
            first. 0: the inputs of the compiled model alone; None: all.
    """
    torch._functorch.config.activation_memory_budget = 1.0 if share is None else share
