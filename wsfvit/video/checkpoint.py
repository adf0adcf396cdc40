"""Description of a video model in its checkpoint, and the model rebuilt from it."""

import argparse
import os
from dataclasses import asdict
from typing import Any

import torch

from wsfvit.checkpoint.io import StateDict, apply_state_dict, load_state_dict_file
from wsfvit.utils.errors import UserError
from wsfvit.video.data.moving_mnist import Motion
from wsfvit.video.model.published import convert_published, is_published, read_config
from wsfvit.video.model.simvp import SimVP, SimVPConfig

TASK = "video"
# Arguments that define the sequences; validate and predict take them from the checkpoint.
DATA_FIELDS = ("size", "digits", "speed", "frame_step")


def describe(config: SimVPConfig, args: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    """Entries of every checkpoint, primitives only; ``size`` is that of the training frames."""
    data = {name: getattr(args, name) for name in DATA_FIELDS} | {"size": size}
    return {"task": TASK, "config": {"model": asdict(config), "data": data}}


def load_video_weights(
    path: str | os.PathLike[str], use_ema: bool = False, trust: bool = False
) -> tuple[StateDict, dict[str, Any]]:
    """Load the weights of a video model from a checkpoint of the train command or a file of the WSF-ViT release.

    Args:
        path: The file.
        use_ema: Prefer the EMA weights where the file has them.
        trust: Unpickle without restrictions. The file can then run any code.

    Returns:
        The state dict with the keys of ``SimVP``, and the metadata of ``load_state_dict_file``; its ``config`` is that
        of ``describe``, for the release with the published Moving MNIST.

    Raises:
        UserError: the file cannot be read, or does not hold such weights.
    """
    state_dict, meta = load_state_dict_file(path, use_ema=use_ema, trust=trust, task=TASK)
    if not is_published(state_dict):
        return state_dict, meta
    try:
        state_dict = convert_published(state_dict)
        model = asdict(read_config(state_dict))
    # Another translator's names, or a damaged file's shapes: the user can do the same about all of them.
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as err:
        raise UserError(f"checkpoint '{path}' holds a SimVP, but not the one of the WSF-ViT release ({err!r})") from err
    motion = Motion()
    data = {"size": list(motion.size), "digits": motion.num_digits, "speed": motion.speed, "frame_step": 1}
    return state_dict, meta | {"config": {"model": model, "data": data}}


def load_model(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", use_ema: bool = False, trust: bool = False
) -> tuple[SimVP, dict[str, Any]]:
    """Build the model of a checkpoint, in eval mode on ``device``; see ``load_video_weights`` for the arguments.

    Returns:
        The model, and metadata: ``weights`` ("ema" or "raw"), ``data`` (``DATA_FIELDS``, size as a list) and, if the
        file has them, ``epoch`` and ``num_updates``.

    Raises:
        UserError: the file cannot be read, or does not hold a video model.
    """
    state_dict, meta = load_video_weights(path, use_ema, trust)
    config = meta.pop("config", {})
    try:
        model = SimVP(SimVPConfig(**config["model"]))
        meta["data"] = {name: config["data"][name] for name in DATA_FIELDS}
    except (KeyError, TypeError, ValueError) as err:
        raise UserError(f"checkpoint '{path}' lacks the configuration of its video model ({err!r})") from err
    apply_state_dict(model, state_dict, path)
    return model.to(device).eval(), meta


def fill_data_options(args: argparse.Namespace, data: dict[str, Any]) -> None:
    """Set the data options that the command line left out to the values of a checkpoint."""
    for name in DATA_FIELDS:
        if getattr(args, name) is None:
            setattr(args, name, data[name])
