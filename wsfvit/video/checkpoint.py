"""Checkpoints of video models: their description, the model rebuilt from it, and the WSF-ViT release's weights.

The release trains with OpenSTL, which writes the state dict alone or under `state_dict`, with or without a prefix
`model.`. Its blocks store the rows of a query-key-value layer head by head, and one bias table row per offset, as Swin.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from wsfvit.checkpoint.io import StateDict, apply_state_dict, load_state_dict_file
from wsfvit.utils.errors import UserError
from wsfvit.video.data.moving_mnist import Motion
from wsfvit.video.model.simvp import SimVP, SimVPConfig

# Applied one after the other.
_RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^dwt_l2\.", "front.dwt."),
    (r"^norm\.", "front.norm."),
    (r"^enc\.enc\.0\.conv\.", "encoder.first."),
    (r"^enc\.enc\.(\d+)\.conv\.", lambda m: f"encoder.rest.{int(m[1]) - 1}."),
    (r"^dec\.readout\.", "decoder.readout."),
    (r"^dec\.dec\.(\d+)\.conv\.(conv|norm)\.(?:0\.)?", r"decoder.first.\1.\2."),
    (r"^hid\.enc\.(\d+)\.reduction\.", r"translator.\1.proj."),
    (r"^hid\.enc\.(\d+)\.block\.", r"translator.\1.block."),
    (r"\.attn_block\.", ".attn_local."),
    (r"\.attn_channel\.", ".attn_inter."),
    (r"\.attn_grid\.", ".attn_global."),
)
_BIAS_TABLE = "rel_pos.relative_position_bias_table"
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

    The arguments are those of ``load_state_dict_file``.

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


def is_published(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are those of SimVP's own code, with any translator."""
    return "dec.readout.weight" in state_dict


def convert_published(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's state dict with the keys and in the layout of `SimVP`."""
    last = f"decoder.first.{_count('dec.dec.', published) - 1}."
    state = {}
    for key, value in published.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        state[key.replace(last, "decoder.last.")] = value
    for key, table in list(state.items()):
        if key.endswith(_BIAS_TABLE):
            attn = key.removesuffix(_BIAS_TABLE)
            for entry in ("qkv.weight", "qkv.bias"):
                state[attn + entry] = _qkv_first(state[attn + entry], heads=table.shape[1])
            state[key] = _bias_by_head(table)
    return state


def read_config(state_dict: Mapping[str, Tensor]) -> SimVPConfig:
    """Configuration of a converted state dict; the inter-subband heads, which no shape shows, are the published ones.

    Raises:
        LookupError: another model's state dict; shapes that fit no model raise other errors too.
    """

    def width(key: str) -> int:
        return len(state_dict[key])

    hid_s = width("encoder.first.conv.weight")
    n_t = _count("translator.", state_dict)
    widths = [width(f"translator.{i}.block.conv.pre_norm.weight") for i in range(n_t)]
    block = "translator.0.block."
    heads, table_side, _ = state_dict[f"{block}attn_local.attn.{_BIAS_TABLE}"].shape
    proj = state_dict.get(f"translator.{n_t - 1}.proj.weight")
    return SimVPConfig(
        frames_in=widths[0] // hid_s,
        frames_out=(widths[-1] if proj is None else len(proj)) // hid_s,
        channels=width("decoder.readout.weight"),
        hid_s=hid_s,
        hid_t=widths[-1],
        n_s=1 + _count("encoder.rest.", state_dict),
        n_t=n_t,
        mlp_ratio=width(f"{block}attn_inter.mlp.fc1.weight") / widths[0],
        attn_mlp_ratio=width(f"{block}attn_local.mlp.fc1.weight") / widths[0],
        head_dim=widths[0] // heads,
        window_size=(table_side + 1) // 2,
    )


def _count(prefix: str, names: Iterable[str]) -> int:
    """Number of modules in the list under ``prefix``."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)})


def _qkv_first(value: Tensor, heads: int) -> Tensor:
    """Rows in the order (heads, q k v, head width) -> rows in the order (q k v, heads, head width)."""
    return value.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def _bias_by_head(table: Tensor) -> Tensor:
    """Swin's table ((2P - 1)^2, heads), offset of query minus key -> (heads, 2P - 1, 2P - 1), key minus query."""
    side = round(table.shape[0] ** 0.5)
    return table.T.unflatten(1, (side, side)).flip(1, 2).contiguous()
