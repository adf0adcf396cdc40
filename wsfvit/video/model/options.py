"""Command-line options of the model, shared by all commands that build one."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

from wsfvit.cli.common import Group, positive_float, positive_int
from wsfvit.utils.errors import UserError
from wsfvit.video.model.simvp import Family, SimVPConfig

# Field of SimVPConfig: type of the option, help.
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "frames_in": (positive_int, "input frames"),
    "frames_out": (positive_int, "frames predicted in one pass"),
    "channels": (positive_int, "channels of a frame"),
    "hid_s": (positive_int, "width of encoder and decoder"),
    "hid_t": (positive_int, "width of the translator after its first block"),
    "n_s": (positive_int, "convolutions of the encoder and of the decoder; every second one changes the resolution"),
    "n_t": (positive_int, "WSF blocks of the translator"),
    "mlp_ratio": (positive_float, "hidden over outer width of the inter-subband MLP"),
    "attn_mlp_ratio": (positive_float, "hidden over outer width of the MLPs of local and global attention"),
    "head_dim": (positive_int, "head width of local and global attention"),
    "inter_heads": (positive_int, "heads of the inter-subband attention"),
    "window_size": (positive_int, "side of attention window and grid"),
    "drop_path": (float, "stochastic depth of the translator's last block, rising from 0.01 in its first one"),
}


def add_model_options(group: Group) -> None:
    """Add one option per field of `SimVPConfig`, with its default."""
    for field in fields(SimVPConfig):
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "family":
            text = "attention in the pixel domain (published) or on explicit Haar subbands (dwt)"
            group.add_argument(flag, choices=get_args(Family), default=field.default, help=text)
        else:
            convert, text = _OPTIONS[field.name]
            group.add_argument(flag, type=convert, default=field.default, metavar="N", help=text)


def build_config(args: argparse.Namespace) -> SimVPConfig:
    """Build the configuration, or raise a ``UserError`` where the options do not fit each other."""
    try:
        return SimVPConfig(**{field.name: getattr(args, field.name) for field in fields(SimVPConfig)})
    except ValueError as err:
        raise UserError(f"this model cannot be built: {err}") from err
