"""Non-finite losses and gradients: a dump of each of the first ones, for ``wsfvit replay``."""

import math
from pathlib import Path
from typing import Any

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
    run_dir: Path, described: dict[str, Any], state: TrainState, cfg: StepConfig, loader: TrainLoader, norm: float
) -> str:
    """Dump an update that was just skipped, if it is one of the first; returns a line for the log.

    Every process must call it. The process with the first non-finite loss writes
    ``RUN/bad-steps/epoch-E-batch-B.pth.tar``: the weights, what ``described`` says about the run, and as ``bad_step``
    the batches, the dataset indices of their images, the seeds, the losses, the gradient's ``norm`` and the norms of
    weights and gradients per module.
    """
    world = cfg.world
    losses = [loss.item() for loss, _ in state.group]
    batches = range(state.batch - len(state.group), state.batch)
    every = world.gather(losses)
    writer = next((rank for rank, values in enumerate(every) if not all(map(math.isfinite, values))), 0)
    note = ""
    if world.rank == writer:
        step = {
            "epoch": state.epoch,
            "batches": list(batches),
            "rank": world.rank,
            "world_size": world.size,
            "seeds": [[cfg.seed, state.epoch, batch, world.rank] for batch in batches],
            "indices": [loader.batch_indices(batch) for batch in batches],
            "losses": losses,
            "grad_norm": norm,
            "norms": module_norms(state.model),
        }
        content = described | {"state_dict": state.model.state_dict(), "bad_step": step}
        note = _write(run_dir / FOLDER, f"epoch-{state.epoch}-batch-{batches[0]}.pth.tar", content)
    loss = sum(every[writer]) / len(losses)
    return (
        f"epoch {state.epoch}, batch {state.batch - 1}: update skipped, loss {loss:.4g}, gradient norm {norm:.4g} "
        f"({state.bad_in_a_row} in a row, {state.bad_steps} in all){world.gather(note)[writer]}"
    )


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
    norms: dict[str, list[float | None]] = {}
    for name, parameters in groups.items():
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        gradient = nn.utils.get_total_norm(grads).item() if grads else None
        norms[name] = [nn.utils.get_total_norm(parameters).item(), gradient]
    return norms
