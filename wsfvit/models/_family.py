"""Helpers of the family files: configurations overridden and checked, timm's pooling, variants built through timm."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import nn

from ._classifier import StagedClassifier
from ._published import find_pretrained
from ._state_dict import convert_state_dict

Cfg = TypeVar("Cfg", bound=Any)


def override_cfg(cfg: Cfg, overrides: Mapping[str, Any]) -> Cfg:
    """The frozen dataclass `cfg` with some fields replaced; lists become tuples, an unknown field is a TypeError."""
    known = {field.name for field in fields(cfg)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise TypeError(f"unknown model argument {', '.join(unknown)}; known fields: {', '.join(sorted(known))}")
    return replace(cfg, **{key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()})


def check_sizes(cfg: Any, *names: str) -> None:
    """Raises a ValueError for the first field that is not an integer of at least 1, a tuple of them, or None."""
    for name in names:
        value = getattr(cfg, name)
        several = isinstance(value, tuple)
        if value is not None and not all(isinstance(v, int) and v >= 1 for v in (value if several else (value,))):
            wanted = "integers" if several else "an integer"
            raise ValueError(f"{name} must be {wanted} of at least 1, not {value!r}")


def check_one_per_stage(cfg: Any, *names: str) -> None:
    """Raises a ValueError that names all fields unless they are non-empty tuples of one length."""
    values = {name: getattr(cfg, name) for name in names}
    lengths = {len(value) if isinstance(value, tuple) else 0 for value in values.values()}
    if len(lengths) > 1 or 0 in lengths:
        found = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise ValueError(f"one value per stage is needed, got {found}")


def build_global_pool(pool_type: str) -> SelectAdaptivePool2d:
    """timm's pooling by name: (B, C, H, W) -> (B, C), or the unchanged map for ""; another width is a ValueError."""
    pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
    if pool.feat_mult() != 1:
        raise ValueError(f"global_pool {pool_type!r} changes the width; use avg, max, avgmax, fast or ''")
    return pool


def build_variant(
    model_cls: type[nn.Module],
    name: str,
    pretrained: bool,
    model_cfg: Any,
    out_indices: int | tuple[int, ...],
    filter_fn: Callable[..., Any] = convert_state_dict,
    /,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> Any:
    """Builds a registered variant through timm, on `device` and in `dtype`; the body of every entry point.

    `out_indices` are the default of `features_only`, `filter_fn` adapts a pretrained state dict to the model, and
    `kwargs` are the keywords of `create_model`; pretrained weights that they do not locate are taken from the cache.
    """
    if pretrained:
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)
        if not (cfg.has_weights or cfg.state_dict):
            kwargs["pretrained_cfg_overlay"] = {**overlay, "file": str(find_pretrained(name))}
    features: dict[str, Any] = dict(feature_cls="getter", out_indices=out_indices)
    # timm's "list" and "hook" then call the children one after another, which only these models' forward does too.
    features["flatten_sequential"] = issubclass(model_cls, StagedClassifier)
    options = dict(model_cfg=model_cfg, feature_cfg=features, pretrained_filter_fn=filter_fn)
    with torch.device(device) if device is not None else nullcontext():
        model = build_model_with_cfg(model_cls, name, pretrained, **options, **kwargs)
    return model if dtype is None else model.to(dtype)
