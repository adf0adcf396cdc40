"""Loading of state dicts: conversion of names, resizing of bias tables, mismatch reports."""

import logging
from collections.abc import Mapping
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from wsfvit.layers import RelPosBias, resize_bias_table

_logger = logging.getLogger(__name__)

_TABLE = "relative_position_bias_table"


def convert_state_dict(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Copy of a state dict with other names of its family converted to the model's; timm's checkpoint filter."""
    return dict(getattr(model, "convert_state_dict", dict)(state_dict))


def resize_bias_tables(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load hook: interpolates the bias tables of a checkpoint for another window, and logs it in one line.

    Registered with `register_load_state_dict_pre_hook`, so it runs on every load; `state_dict` is torch's copy, never
    the caller's. Tables with another number of heads are reported by the strict check.
    """
    changes: dict[tuple[Any, Any], int] = {}
    for name, module in model.named_modules():
        key = f"{prefix}{name}.{_TABLE}"
        if not isinstance(module, RelPosBias) or not _is_resizable(state_dict.get(key), module):
            continue
        table = state_dict[key]
        new = tuple(module.relative_position_bias_table.shape[1:])
        if tuple(table.shape[1:]) != new:
            state_dict[key] = resize_bias_table(table, module.window_size)
            change = (tuple(table.shape[1:]), new)
            changes[change] = changes.get(change, 0) + 1
    if changes:
        text = ", ".join(f"{n} from {a[0]}x{a[1]} to {b[0]}x{b[1]}" for (a, b), n in changes.items())
        _logger.warning("Resized relative position bias tables of the checkpoint: %s.", text)


def _is_resizable(table: Any, module: RelPosBias) -> bool:
    heads = module.relative_position_bias_table.shape[0]
    return isinstance(table, Tensor) and table.ndim == 3 and table.shape[0] == heads


def adapt_stem_channels(state_dict: dict[str, Tensor], in_chans: int) -> dict[str, Tensor]:
    """Adapts a wavelet stem's weights to another number of image channels, by timm's rules for a first convolution.

    Args:
        state_dict: With `stem.conv1.weight` (D, 4 * c, 3, 3) and `stem.norm1.*` (4 * c,), subband-major.
        in_chans: Image channels C of the model.

    Returns:
        State dict for 4 * C stem channels: the convolution summed over the colours for C = 1, else repeated and scaled
        by c / C; the norm averaged over the colours for C = 1, else repeated. The unchanged dict for c = C.
    """
    conv = state_dict.get("stem.conv1.weight")
    if conv is None or conv.shape[1] == 4 * in_chans:
        return state_dict
    D, chs, *kernel = conv.shape
    c = chs // 4
    out = dict(state_dict)
    per_subband = adapt_input_conv(in_chans, conv.reshape(D * 4, c, *kernel), base_chans=c)
    out["stem.conv1.weight"] = per_subband.reshape(D, 4 * in_chans, *kernel)
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = state_dict[f"stem.norm1.{name}"].reshape(4, c)
        if in_chans == 1:
            values = values.mean(1, keepdim=True)
        out[f"stem.norm1.{name}"] = values.repeat(1, -(-in_chans // c))[:, :in_chans].reshape(-1)
    _logger.warning("Adapted the stem of the checkpoint from %d to %d image channels.", c, in_chans)
    return out


def describe_misfit(model: nn.Module, state_dict: Mapping[str, Any]) -> str | None:
    """One-line report of why a state dict does not load strictly into a model; None if it does.

    Entries that are adapted on load are not reported: names that the model's `convert_state_dict` converts, bias tables
    that differ only in the window, and entries that its `resize_state_dict` resamples.
    """
    own, state_dict = model.state_dict(), convert_state_dict(state_dict, model)
    resize = getattr(model, "resize_state_dict", None)
    if resize is not None:
        state_dict = {**state_dict, **resize(state_dict)}
    resizable = {
        f"{name}.{_TABLE}"
        for name, module in model.named_modules()
        if isinstance(module, RelPosBias) and _is_resizable(state_dict.get(f"{name}.{_TABLE}"), module)
    }
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    shapes = {
        key: (_shape(state_dict[key]), _shape(value))
        for key, value in own.items()
        if key in state_dict and key not in resizable and _shape(state_dict[key]) != _shape(value)
    }
    if not (missing or unexpected or shapes):
        return None
    cfg = getattr(model, "default_cfg", {})
    name = cfg.get("architecture") or type(model).__name__
    classifier = cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    if shapes and not missing + unexpected and all(key.rsplit(".", 1)[0] in heads for key in shapes):
        theirs, ours = ((shape or (0,))[0] for shape in next(iter(shapes.values())))
        return (
            f"it has {theirs} classes, the model {name} has {ours}: "
            f"pass num_classes={theirs} (--num-classes {theirs}) to use its classifier"
        )
    parts = [
        _some("missing", missing),
        _some("unexpected", unexpected),
        _some("of another shape", [f"{key}: {theirs} for {ours}" for key, (theirs, ours) in shapes.items()]),
    ]
    return f"it does not fit {name} ({len(own)} entries): {'; '.join(filter(None, parts))}"


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _some(what: str, keys: list[str]) -> str:
    return f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""


class StrictLoadMixin:
    """`load_state_dict` that accepts published names and raises a one-line mismatch report before any change."""

    def convert_state_dict(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Converts a state dict of the authors' code to this model's names and layouts; by default unchanged."""
        return state_dict

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch.

        Raises:
            RuntimeError: The state dict does not fit and `strict` is set; the model is then unchanged.
        """
        assert isinstance(self, nn.Module)
        state_dict = self.convert_state_dict(state_dict)
        complaint = describe_misfit(self, state_dict) if strict else None
        if complaint:
            raise RuntimeError(f"cannot load the state dict: {complaint}")
        return nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)
