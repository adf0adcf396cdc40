"""Non-finite losses and gradients: a dump of each of the first ones, for ``wsfvit replay``."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsfvit.checkpoint.io import save_atomic
from wsfvit.data import TrainLoader
from wsfvit.train.loop import StepConfig
from wsfvit.train.state import TrainState
from wsfvit.utils.errors import UserError

FOLDER = "bad-steps"
MAX_DUMPS = 3  # per run and machine: the first ones tell most, and each file holds all weights
DEPTH = 2  # levels of the module tree that norms are reported for


def report_bad_step(
    run_dir: Path,
    described: dict[str, Any],
    state: TrainState,
    cfg: StepConfig,
    loader: TrainLoader,
    grad_norm: torch.Tensor,
) -> str:
    """Dump an update that was just skipped, if it is one of the first; every process must call it.

    The process with the first non-finite loss writes ``RUN/bad-steps/epoch-E-batch-B.pth.tar``: the
    weights, what ``described`` says about the run, and as ``bad_step`` the batches, the dataset indices of their
    images, the seeds, the losses and the norms of weights and gradients per module.

    Returns:
        A line for the log.
    """
    world = cfg.world
    losses = [loss.item() for loss, _ in state.group]
    every = world.gather(losses)
    writer = next((rank for rank, values in enumerate(every) if not all(map(math.isfinite, values))), 0)
    note = ""
    if world.rank == writer:
        content = described | {
            "state_dict": state.model.state_dict(),
            "bad_step": _describe(state, cfg, loader, losses, grad_norm.item()),
        }
        note = _write(run_dir / FOLDER, f"epoch-{state.epoch}-batch-{_batches(state)[0]}.pth.tar", content)
    loss = sum(every[writer]) / len(losses)
    return (
        f"epoch {state.epoch}, batch {state.batch - 1}: update skipped, loss {loss:.4g}, gradient norm "
        f"{grad_norm.item():.4g} ({state.bad_in_a_row} in a row, {state.bad_steps} in all){world.gather(note)[writer]}"
    )


def _batches(state: TrainState) -> range:
    return range(state.batch - len(state.group), state.batch)


def _describe(
    state: TrainState, cfg: StepConfig, loader: TrainLoader, losses: list[float], grad_norm: float
) -> dict[str, Any]:
    batches = _batches(state)
    return {
        "epoch": state.epoch,
        "batches": list(batches),
        "rank": cfg.world.rank,
        "world_size": cfg.world.size,
        "seeds": [[cfg.seed, state.epoch, batch, cfg.world.rank] for batch in batches],
        "indices": [loader.batch_indices(batch) for batch in batches],
        "losses": losses,
        "grad_norm": grad_norm,
        "norms": module_norms(state.model),
    }


def _write(folder: Path, name: str, content: dict[str, Any]) -> str:
    try:
        folder.mkdir(exist_ok=True, parents=True)
        if len(list(folder.glob("*.pth.tar"))) >= MAX_DUMPS:
            return ""
        save_atomic(content, folder / name)
    # A run must not end because the disk is full for a report on it.
    except (OSError, UserError) as err:
        return f"; no dump: {err}"
    command = "wsfvit replay" if content.get("task") == "classification" else "dumped to"
    return f"; {command} {folder / name}"


def module_norms(model: nn.Module) -> dict[str, list[float | None]]:
    """Norms of the weights and of their gradients (None without one) for the modules of the first levels, by name."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        path = name.split(".")
        groups.setdefault(".".join(path[: min(DEPTH, len(path) - 1)] or path), []).append(parameter)
    return {
        name: [
            nn.utils.get_total_norm(parameters).item(),
            nn.utils.get_total_norm(grads).item()
            if (grads := [parameter.grad for parameter in parameters if parameter.grad is not None])
            else None,
        ]
        for name, parameters in groups.items()
    }
