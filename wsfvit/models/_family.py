"""What every family file needs besides its model: fields overridden and checked, variants registered with timm."""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, register_model
from torch import nn

from ._state_dict import convert_state_dict

Cfg = TypeVar("Cfg", bound=Any)


def override_cfg(cfg: Cfg, overrides: Mapping[str, Any]) -> Cfg:
    """The frozen dataclass `cfg` with some fields replaced; lists become tuples.

    Raises:
        TypeError: On a keyword that is no field.
    """
    known = {field.name for field in fields(cfg)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise TypeError(f"unknown model argument {', '.join(unknown)}; known fields: {', '.join(sorted(known))}")
    return replace(cfg, **{key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()})


def check_sizes(cfg: Any, *names: str) -> None:
    """Refuses sizes and numbers of things that cannot be one; fields that are None count as not given.

    Args:
        cfg: The variant.
        names: Of its fields that must be whole numbers of at least 1, or tuples of such.

    Raises:
        ValueError: On the first field that is not, with its name and value.
    """
    for name in names:
        value = getattr(cfg, name)
        several = isinstance(value, tuple)
        if value is not None and not all(isinstance(v, int) and v >= 1 for v in (value if several else (value,))):
            wanted = "whole numbers" if several else "a whole number"
            raise ValueError(f"{name} must be {wanted} of at least 1, not {value!r}")


def check_one_per_stage(cfg: Any, *names: str) -> None:
    """Refuses fields that are not all tuples of one length, of at least one value.

    Raises:
        ValueError: With all of them.
    """
    values = {name: getattr(cfg, name) for name in names}
    lengths = {len(value) if isinstance(value, tuple) else 0 for value in values.values()}
    if len(lengths) > 1 or 0 in lengths:
        found = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise ValueError(f"one value per stage is needed, got {found}")


def build_global_pool(pool_type: str) -> SelectAdaptivePool2d:
    """timm's pooling by name: (B, C, H, W) -> (B, C), or the map as it is where the name is "".

    Raises:
        ValueError: On a pooling that gives another number of channels.
    """
    pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
    if pool.feat_mult() != 1:
        raise ValueError(f"global_pool {pool_type!r} changes the width; known are avg, max, avgmax, fast and ''")
    return pool


def register_variants(
    module_name: str,
    model_cls: Callable[..., nn.Module],
    model_cfgs: Mapping[str, Any],
    feature_cfg: Mapping[str, Any],
    pretrained_filter_fn: Callable[..., Any] = convert_state_dict,
) -> None:
    """Registers every variant of a family with timm and puts its entry point into the family's module.

    Args:
        module_name: The family's `__name__`; the module has timm's `default_cfgs` for all variants.
        model_cls: Called with `cfg=` and the keywords of `create_model`.
        model_cfgs: Configuration of each variant, by registered name.
        feature_cfg: What `features_only` builds the extractor with.
        pretrained_filter_fn: Adapts a pretrained state dict to the model (default: its names alone).
    """

    def register(name: str, cfg: Any) -> None:
        def entrypoint(
            pretrained: bool = False,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
            **kwargs: Any,
        ) -> nn.Module:
            with torch.device(device) if device is not None else nullcontext():
                model: nn.Module = build_model_with_cfg(
                    model_cls,
                    name,
                    pretrained,
                    model_cfg=cfg,
                    pretrained_filter_fn=pretrained_filter_fn,
                    feature_cfg=dict(feature_cfg),
                    **kwargs,
                )
            return model if dtype is None else model.to(dtype)

        entrypoint.__name__ = entrypoint.__qualname__ = name
        entrypoint.__module__ = module_name
        entrypoint.__doc__ = f"{name}: {cfg}"
        setattr(sys.modules[module_name], name, register_model(entrypoint))

    for name, cfg in model_cfgs.items():
        register(name, cfg)


__all__ = ["build_global_pool", "check_one_per_stage", "check_sizes", "override_cfg", "register_variants"]
