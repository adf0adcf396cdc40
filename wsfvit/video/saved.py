"""What a video model's checkpoint says about itself, and the model built again from it."""

import argparse
import os
from dataclasses import asdict
from typing import Any

import torch

from wsfvit.engine.checkpoint import apply_state_dict, load_state_dict_file
from wsfvit.errors import UserError
from wsfvit.video.simvp import SimVP, SimVPConfig

TASK = "video"
# Arguments that say how sequences are made; validate and predict take them from the checkpoint.
DATA_FIELDS = ("size", "digits", "speed", "frame_step")


def describe(config: SimVPConfig, args: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    """What goes into every checkpoint, primitives only; ``size`` is that of the training frames."""
    data = {name: getattr(args, name) for name in DATA_FIELDS} | {"size": size}
    return {"task": TASK, "config": {"model": asdict(config), "data": data}}


def load_model(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", use_ema: bool = False, trust: bool = False
) -> tuple[SimVP, dict[str, Any]]:
    """Builds the model of a checkpoint, in eval mode on ``device``.

    Args:
        path: A checkpoint of the train command.
        device: Where it is to compute.
        use_ema: Prefer the moving average of the weights where the file has it.
        trust: Unpickle without restrictions. The file can then run any code.

    Returns:
        The model, and what else the file says: ``weights`` ("ema" or "raw"), ``data`` (``DATA_FIELDS``, size as a
        list) and, if there, ``epoch`` and ``num_updates``.

    Raises:
        UserError: the file cannot be read, or holds no video model.
    """
    state_dict, meta = load_state_dict_file(path, use_ema=use_ema, trust=trust, task=TASK)
    config = meta.pop("config", {})
    try:
        model = SimVP(SimVPConfig(**config["model"]))
        meta["data"] = {name: config["data"][name] for name in DATA_FIELDS}
    except (KeyError, TypeError, ValueError) as err:
        raise UserError(f"checkpoint '{path}' does not say how its video model is built ({err!r})") from err
    apply_state_dict(model, state_dict, path)
    return model.to(device).eval(), meta


def fill_data_options(args: argparse.Namespace, data: dict[str, Any]) -> None:
    """Gives the data options that the command line left out the values of a checkpoint."""
    for name in DATA_FIELDS:
        if getattr(args, name) is None:
            setattr(args, name, data[name])
