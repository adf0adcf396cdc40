"""What every family file needs besides its model: overriding a variant's fields, registering its variants with timm."""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
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


__all__ = ["override_cfg", "register_variants"]
