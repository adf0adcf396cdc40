"""Loader for every kind of checkpoint file, and the atomic writer.

Loading never runs code from the file: pickles are read with ``torch.load(weights_only=True)`` unless trusted.
"""

import argparse
import copy
import hashlib
import json
import logging
import numbers
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import nn

from wsfvit.checkpoint.integrity import find_damage, write_sealed
from wsfvit.checkpoint.pickle_scan import refused_globals
from wsfvit.models import convert_state_dict, describe_misfit
from wsfvit.models._state_dict import adapt_stem_channels
from wsfvit.models.wsfvit import WSFViT
from wsfvit.utils.errors import UserError, first_line
from wsfvit.utils.files import write_atomic
from wsfvit.utils.limits import MAX_SIDE, check_content, check_model_kwargs

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
RAW_KEYS = ("state_dict", "model_state_dict", "model")
EMA_KEYS = ("state_dict_ema", "model_ema")
META_KEYS = {
    "arch": str, "model_kwargs": dict, "data_config": dict, "class_names": list, "config": dict, "epoch": int,
    "metric": numbers.Real, "num_updates": int,
}  # fmt: skip
# Arguments of a training that say how its images are made, where the file has no data_config.
DATA_ARGS = ("input_size", "mean", "std", "interpolation", "crop_pct")

StateDict = dict[str, torch.Tensor]
_logger = logging.getLogger(__name__)


def save_atomic(obj: object, path: str | os.PathLike[str]) -> None:
    """``torch.save`` with a SHA-256 in the file; if writing fails, the old file is unchanged."""
    write_atomic(path, lambda file: write_sealed(obj, file))


def read_checkpoint(path: str | os.PathLike[str], trust: bool = False) -> dict[str, Any]:
    """Read the whole content of a checkpoint file: a training state to resume, or weights with metadata.

    Args:
        path: .pth, .pth.tar, .pt or any other ``torch.save`` file, or .safetensors (with its .json, if there is one).
        trust: Unpickle without restrictions, which lets the file run any code.

    Returns:
        The dictionary that was saved, tensors on the CPU; ``args`` as a dictionary, where timm saved a namespace.

    Raises:
        UserError: The file is missing, damaged, refused as unsafe, or does not hold a dictionary.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"checkpoint '{path}' is a directory: name the file in it")
    if not path.is_file():
        raise UserError(f"checkpoint '{path}' {'is not a regular file' if path.exists() else 'does not exist'}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, trust)
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint '{path}' holds a {type(content).__name__}, not weights")
    content = dict(content)
    check_content(content, path.stat().st_size, f"checkpoint '{path}'")
    if isinstance(content.get("args"), argparse.Namespace):
        content["args"] = vars(content["args"])
    return content


def load_state_dict_file(
    path: str | os.PathLike[str], use_ema: bool = False, trust: bool = False, task: str = "classification"
) -> tuple[StateDict, dict[str, Any]]:
    """Read model weights from a checkpoint file.

    Args:
        path, trust: As for ``read_checkpoint``.
        use_ema: Prefer the EMA weights if the file has them.
        task: The task that the weights must have been trained for, if the file names one.

    Returns:
        The state dict on the CPU, without wrapper prefixes, and its metadata: ``weights`` ("ema" or "raw"),
        ``elements``, their number of values, and, where present, ``arch``, ``model_kwargs``, ``data_config``,
        ``class_names`` of a classifier, ``input_img_mode``, ``config`` of another model, ``epoch``, ``metric`` and
        ``num_updates``. Where the file has only the arguments of a training, as those of timm's train.py, they are
        taken from there.

    Raises:
        UserError: As ``read_checkpoint``, or the file holds no weights, or those of another task.
    """
    content = read_checkpoint(path, trust)
    trained_for = content.get("task", task)
    if trained_for != task:
        raise UserError(f"checkpoint '{path}' was trained for {trained_for}, not for {task}")
    state_dict, weights = _find_state_dict(content, path, use_ema)
    elements = sum(value.numel() for value in state_dict.values())
    return strip_prefixes(state_dict), {"weights": weights, "elements": elements, **_read_meta(content, path)}


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    use_ema: bool = False,
    trust: bool = False,
    replace_classifier: bool = False,
) -> dict[str, Any]:
    """Load a checkpoint file into ``model``; every key and shape must match. Returns the metadata of the file.

    Args:
        model: Receives the weights.
        path, use_ema, trust: As for ``load_state_dict_file``.
        replace_classifier: For fine-tuning: if the number of classes differs, the model keeps its own classifier, and
            the metadata holds ``replaced_classes``, the number in the file (0 for none); if the number of image
            channels differs, the first convolution is adapted as timm does for pretrained weights, with a warning.

    Raises:
        UserError: As ``load_state_dict_file``, or the weights do not fit the model.
    """
    state_dict, meta = load_state_dict_file(path, use_ema=use_ema, trust=trust)
    state_dict = convert_state_dict(state_dict, model)
    if replace_classifier:
        state_dict = _adapt_channels(model, state_dict)
        replaced = _keep_own_classifier(model, state_dict)
        meta |= {} if replaced is None else {"replaced_classes": replaced}
    apply_state_dict(model, state_dict, path)
    return meta


def apply_state_dict(model: nn.Module, state_dict: StateDict, path: str | os.PathLike[str]) -> None:
    """Load ``state_dict`` strictly; a mismatch becomes one ``UserError`` with a summary. ``path`` names the source."""
    try:
        model.load_state_dict(state_dict, strict=True)
    except RuntimeError as err:
        raise UserError(f"checkpoint '{path}': {describe_misfit(model, state_dict) or first_line(err)}") from err


def strip_prefixes(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Remove the prefixes that DDP, ``torch.compile`` and wrappers add to every key, in any order and number."""
    stripped = dict(state_dict)
    while stripped:
        prefix = next((p for p in WRAPPER_PREFIXES if all(key.startswith(p) for key in stripped)), None)
        if prefix is None:
            break
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
    return stripped


def _read_safetensors(path: Path) -> dict[str, Any]:
    import safetensors.torch

    try:
        blob = path.read_bytes()
        content: dict[str, Any] = {"state_dict": safetensors.torch.load(blob)}
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as err:
        raise UserError(f"checkpoint '{path}' is damaged or not a safetensors file ({first_line(err)})") from err
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return content
    try:
        described = json.loads(sidecar.read_text())
    except (OSError, RecursionError, ValueError) as err:
        raise UserError(f"'{sidecar}', which describes '{path.name}', cannot be read ({first_line(err)})") from err
    if not isinstance(described, dict):
        raise UserError(f"'{sidecar}', which describes '{path.name}', is not a JSON object")
    if "sha256" in described and described["sha256"] != hashlib.sha256(blob).hexdigest():
        raise UserError(f"checkpoint '{path}' is damaged: its SHA-256 is not the one in '{sidecar.name}'")
    return {**described, **content}


def _read_torch(path: Path, trust: bool) -> Any:
    try:
        damage = find_damage(path)
        if damage:
            raise UserError(f"checkpoint '{path}' is damaged: {damage}")
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # The restricted reader warns about pickle protocols before it reads or refuses them.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    # A damaged or hostile pickle raises almost any exception.
    except Exception as err:
        names = [] if trust else refused_globals(path)
        if names:
            raise UserError(
                f"checkpoint '{path}' was refused: it wants to call {', '.join(names)}. Nothing in it was executed. "
                "Only if you know where the file is from: --trust-checkpoint"
            ) from err
        # torch's message for this one advises loading without the restriction, which does not help.
        reason = "unreadable pickle" if isinstance(err, pickle.UnpicklingError) else first_line(err)
        raise UserError(f"checkpoint '{path}' is damaged or not a checkpoint ({reason})") from err


def _find_state_dict(content: Mapping[str, Any], path: str | os.PathLike[str], use_ema: bool) -> tuple[StateDict, str]:
    for key in (EMA_KEYS if use_ema else ()) + RAW_KEYS:
        if content.get(key) is not None:
            found, weights = content[key], "ema" if key in EMA_KEYS else "raw"
            break
    else:
        found, weights = content, "raw"
    tensors = isinstance(found, Mapping) and all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items()
    )
    if not found or not tensors:
        keys = ", ".join(sorted(map(str, content))[:6]) or "nothing"
        raise UserError(f"checkpoint '{path}' holds no model weights (its top level: {keys})")
    return dict(found), weights


def _read_meta(content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata of the file, checked so that it cannot make ``create_model`` read or fetch other files."""
    args = content.get("args")
    args = args if isinstance(args, dict) else {}
    if "model_kwargs" not in content and isinstance(args.get("model"), str):
        content = {**_describe_args(args), **content}
    meta = {key: content[key] for key in META_KEYS if not isinstance(content.get(key), (torch.Tensor, NoneType))}
    meta |= {key: args[key] for key in ("input_img_mode",) if isinstance(args.get(key), str)}
    for key, kind in META_KEYS.items():
        if not isinstance(meta.get(key), (kind, NoneType)):
            raise UserError(f"checkpoint '{path}': its '{key}' is a {type(meta[key]).__name__}, not a {kind.__name__}")
    size = meta.get("data_config", {}).get("input_size", (1, 1, 1))
    if not isinstance(size, (list, tuple)) or [type(value) for value in size] != [int] * 3 or max(size) > MAX_SIDE:
        raise UserError(
            f"checkpoint '{path}': its input_size is {str(size)[:60]}, not three integers (C, H, W) of an image"
        )
    if "class_names" in meta:
        meta["class_names"] = [str(name) for name in meta["class_names"]]
    check_model_kwargs(meta.get("model_kwargs", {}), f"checkpoint '{path}'")
    return meta


def _describe_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata from the arguments of timm's train.py."""
    found = {"num_classes": args.get("num_classes"), "in_chans": args.get("in_chans"), "global_pool": args.get("gp")}
    kwargs = {key: value for key, value in found.items() if value is not None}
    more = args.get("model_kwargs") or {}
    config = {key: args[key] for key in DATA_ARGS if args.get(key)}
    if size := args.get("img_size"):
        config.setdefault("input_size", (args.get("in_chans") or 3, size, size))
    kwargs = kwargs | more if isinstance(more, dict) else more
    return {"arch": args["model"], "model_kwargs": kwargs, "data_config": config}


def _adapt_channels(model: nn.Module, state_dict: StateDict) -> StateDict:
    """Adapt the first convolution to the model's image channels by timm's rules, where the file has 1 or 3."""
    if isinstance(model, WSFViT):
        return adapt_stem_channels(state_dict, model.in_chans)
    name = getattr(model, "default_cfg", {}).get("first_conv")
    weight = state_dict.get(f"{name}.weight")
    if not isinstance(name, str) or weight is None or weight.ndim != 4 or weight.shape[1] not in (1, 3):
        return state_dict
    channels = getattr(model.get_submodule(name), "in_channels", weight.shape[1])
    if channels == weight.shape[1]:
        return state_dict
    _logger.warning("Adapted %s of the checkpoint from %d to %d image channels.", name, weight.shape[1], channels)
    return {**state_dict, f"{name}.weight": adapt_input_conv(channels, weight, base_chans=weight.shape[1])}


def _keep_own_classifier(model: nn.Module, state_dict: StateDict) -> int | None:
    """Put the model's own classifier into ``state_dict`` if the two differ only in the number of classes.

    Returns the number of classes that the file's classifier had, 0 for none, or None if nothing was replaced.
    """
    names = getattr(model, "default_cfg", {}).get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    ours = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    theirs = {key: value for key, value in state_dict.items() if key.startswith(prefixes)}
    shared = ours.keys() & theirs.keys()
    same_features = all(ours[key].shape[1:] == theirs[key].shape[1:] for key in shared)
    other_shapes = any(ours[key].shape != theirs[key].shape for key in shared)
    # Without a classifier on one side there are no shapes to compare.
    other_classes = other_shapes if shared else bool(ours) != bool(theirs)
    if not (same_features and other_classes):
        return None
    for key in theirs:
        del state_dict[key]
    state_dict.update(ours)
    return max((len(value) for value in theirs.values() if value.ndim), default=0)


def with_checkpoint_defaults(args: argparse.Namespace, meta: dict[str, Any]) -> argparse.Namespace:
    """Complete the arguments with the checkpoint's metadata; raise a ``UserError`` if neither names a model.

    If ``--model`` names another model than the checkpoint, only the number of classes and the channels are taken.
    """
    args = copy.copy(args)
    args.saved_elements = meta.get("elements")  # bounds the model
    saved = dict(meta.get("model_kwargs", {}))
    args.model = args.model or meta.get("arch")
    if not args.model:
        raise UserError(f"checkpoint '{args.checkpoint}' does not name its model: pass --model NAME")
    if args.num_classes is None:
        args.num_classes = saved.get("num_classes")
    if args.in_chans is None and args.input_size is None:
        args.in_chans = saved.get("in_chans")
    args.input_img_mode = getattr(args, "input_img_mode", None) or meta.get("input_img_mode")
    if args.model == meta.get("arch"):
        size_given = args.img_size is not None or args.input_size is not None
        if not size_given and "img_size" not in saved and (size := meta.get("data_config", {}).get("input_size")):
            args.input_size = [args.in_chans or size[0], *size[1:]]
        dropped = {"num_classes", "in_chans"} | ({"img_size"} if size_given else set())
        args.model_kwargs = {k: v for k, v in saved.items() if k not in dropped} | args.model_kwargs
    return args


def saved_data_config(model: str, meta: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's data config for ``resolve_data``; for another model only mean and std, as the weights need."""
    saved = meta.get("data_config", {})
    return {key: value for key, value in saved.items() if model == meta.get("arch") or key in ("mean", "std")}


def note_on_other_model(args: argparse.Namespace, meta: dict[str, Any]) -> str:
    """A note if the weights are loaded into another model than the checkpoint names, else ""."""
    # Models of one family share their keys, so loading does not fail.
    if meta.get("arch") in (None, args.model):
        return ""
    return (
        f"note: checkpoint '{args.checkpoint}' is of {meta['arch']} and runs as {args.model}, with that model's size "
        "and crop and the checkpoint's mean and std"
    )
