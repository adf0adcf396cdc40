"""Bounds on what a file may claim, checked before anything of that size is allocated, built or traversed.

Every check raises a ``UserError``; ``source`` names the file in it.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from wsfvit.utils.errors import UserError

MAX_DEPTH = 64  # levels of nested containers
MAX_VALUES = 100_000  # of a file's content besides one per byte; shared parts count each time
MAX_ARGUMENT = 1 << 20  # any integer in the configuration of a model
# With these, create_model would fetch or read other files; a file must not be able to set them.
RESERVED_KWARGS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
MAX_PIXELS = 1 << 28  # of an image, or of the frames of a sequence
MAX_SIDE = 1 << 14  # sides of an image, in pixels
# The largest models of timm have 1.8k modules and 7e9 parameters.
MAX_MODULES = 10_000
MAX_ELEMENTS = 1 << 33
# A model may have other window sizes or classes than the file with its weights.
ELEMENTS_PER_SAVED, ELEMENTS_BESIDE = 4, 1 << 24


def check_content(content: Any, size: int, source: str) -> None:
    """Check what was read from a file of ``size`` bytes: pickle and YAML can refer to one part many times.

    Content that is nested too deep, unfolds to too many values, or holds an integer of more than 64 bits, or a tensor
    that is not plain or has more values than are stored, raises a ``UserError``.
    """
    parts, left = [(content, 0)], MAX_VALUES + size
    while parts:
        value, depth = parts.pop()
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            reason = "values nested too deep" if depth > MAX_DEPTH else "too many values for its size"
            raise UserError(f"{source} holds {reason}")
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, torch.Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu"
            if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise UserError(
                    f"{source} holds a {value.layout} tensor on {value.device} of {value.numel()} values, not all of "
                    "them stored: save a plain copy"
                )
        elif isinstance(value, int) and abs(value) >= 1 << 64:
            raise UserError(f"{source} holds an integer of {value.bit_length()} bits")
        elif isinstance(value, (Mapping, list, tuple, set, frozenset)):
            inner = [*value, *value.values()] if isinstance(value, Mapping) else value
            parts += [(part, depth + 1) for part in inner]


def check_model_kwargs(kwargs: Any, source: str) -> None:
    """Refuse arguments of a model from a file that would make ``create_model`` read other files, or huge integers."""
    if not isinstance(kwargs, Mapping):
        raise UserError(f"{source}: its model_kwargs are a {type(kwargs).__name__}, not arguments by name")
    if reserved := [key for key in RESERVED_KWARGS if key in kwargs]:
        raise UserError(f"{source}: its model_kwargs may not set {', '.join(reserved)}")
    parts = [kwargs]
    while parts:
        part = parts.pop()
        if isinstance(part, int) and abs(part) > MAX_ARGUMENT:
            raise UserError(f"{source}: {str(part)[:20]} is too large for an argument of a model")
        parts += part.values() if isinstance(part, Mapping) else part if isinstance(part, (list, tuple)) else ()


def check_numbers(config: Any, low: float = -math.inf) -> None:
    """Check the fields of a dataclass that are annotated as int or float: type, finite, ``low`` to MAX_ARGUMENT."""
    for field in dataclasses.fields(config):
        value, is_integer = getattr(config, field.name), field.type is int
        fits = type(value) is int or (type(value) is float and not is_integer)
        bounded = fits and (low if is_integer else -math.inf) <= value <= MAX_ARGUMENT
        if field.type in (int, float) and not bounded:
            raise UserError(f"{field.name} is {str(value)[:20]}, not a number that fits")


def check_data_config(config: Mapping[str, Any], source: str) -> None:
    """Check an evaluation setting: mean, std, crop_pct, input_size (C, H, W).

    All must be finite numbers, and no image may be resized to no pixel or more than MAX_SIDE.
    """
    for key in ("mean", "std", "crop_pct", "input_size"):
        value = config.get(key) or (1.0 if key == "crop_pct" else [1.0])
        numbers: Any = [value] if key == "crop_pct" else value if isinstance(value, (list, tuple)) else [None]
        if not all(type(each) in (int, float) and math.isfinite(each) for each in numbers):
            raise UserError(f"{source} has {key} {str(value)[:60]}, not finite numbers")
    sides, crop = (config.get("input_size") or [1])[1:], config.get("crop_pct") or 1.0
    if not all(1 <= side / crop <= MAX_SIDE for side in sides) or min(config.get("std") or [1]) <= 0:
        shown = f"crop_pct {crop:g} of {'x'.join(map(str, sides))} pixels, std {config.get('std')}"
        raise UserError(f"{source} has {shown}: images of 1 to {MAX_SIDE} pixels and std above 0 are possible")


def check_pixels(size: Sequence[Any], frames: int, what: str) -> None:
    """Check that a size (height, width) is two positive integers, and of at most MAX_PIXELS in that many frames."""
    if [type(side) for side in size] != [int, int] or min(size) < 1 or frames * size[0] * size[1] > MAX_PIXELS:
        shown = "x".join(str(side)[:20] for side in size)
        raise UserError(f"{what} {shown} pixels: they must be positive, and at most {MAX_PIXELS} in all")


def check_build(build: Callable[[], object], saved: int | None = None, source: str = "the configuration") -> None:
    """Build a model on the meta device, where nothing is allocated, and stop when it has too many modules or values.

    Exceptions of ``build`` are left to the build that follows. ``saved`` is the number of values in the file with its
    weights, which bounds the model's size; None where there is none.
    """
    limit = MAX_ELEMENTS if saved is None else ELEMENTS_PER_SAVED * saved + ELEMENTS_BESIDE
    modules = elements = 0

    def count(module: nn.Module, name: str, part: Any) -> None:
        nonlocal modules, elements
        modules += isinstance(part, nn.Module)
        elements += part.numel() if isinstance(part, torch.Tensor) else 0
        if modules > MAX_MODULES or elements > limit:
            size = f"{MAX_MODULES} modules" if modules > MAX_MODULES else f"{limit} parameters"
            raise UserError(f"{source} describes a model of more than {size}")

    with (
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
        registration.register_module_module_registration_hook(count),
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ):
        try:
            build()
        except UserError:
            raise
        except Exception:  # some models cannot be built without memory
            return
