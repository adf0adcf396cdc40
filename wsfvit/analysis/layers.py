"""Feature maps inside any model: which module outputs one, its layout, and whether the class score depends on it."""

import difflib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wsfvit.utils.errors import UserError

# A smaller map hardly localizes anything.
MIN_SIDE = 4
MAX_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class TargetLayer:
    """A module whose output is a feature map; ``grid`` is its height and width for the image it was found with."""

    name: str
    module: nn.Module
    grid: tuple[int, int]


def to_maps(x: Tensor, size: tuple[int, int], prefix_tokens: int = 0, channels_last: bool = False) -> Tensor | None:
    """View a layer's output for images of ``size`` (H, W) as (B, C, h, w).

    The layout is the one whose h and w divide H and W by the same stride, up to rounding.

    Args:
        x: (B, C, h, w), (B, h, w, C), or tokens (B, P + h * w, C) in raster order after P prefix tokens.
        size: Height and width of the image.
        prefix_tokens: P by the model; tried first, then 0, 1, 2, ...
        channels_last: Prefer (B, h, w, C) if both 4-D layouts fit.

    Returns:
        The view, or None if no layout fits.
    """
    if x.ndim == 4:
        layouts = [x, x.permute(0, 3, 1, 2)]
        best = min(layouts[::-1] if channels_last else layouts, key=lambda maps: _misfit(size, _side(maps)))
        return best if _fits(size, _side(best)) else None
    if x.ndim == 3:
        for prefix in (prefix_tokens, *range(MAX_PREFIX_TOKENS + 1)):
            grid = _token_grid(x.shape[1] - prefix, size)
            if grid is not None:
                return x[:, prefix:].transpose(1, 2).unflatten(2, grid)
    return None


def model_layout(model: Any) -> dict[str, Any]:
    """The layout of a timm model, as keyword arguments of ``to_maps``."""
    channels_last = str(getattr(model, "output_fmt", "NCHW")).upper().endswith("NHWC")
    return {"prefix_tokens": getattr(model, "num_prefix_tokens", 0), "channels_last": channels_last}


def find_target_layer(model: nn.Module, image: Tensor, name: str | None = None) -> TargetLayer:
    """Find the module whose output a class activation map explains.

    That is the last stage (by timm's ``feature_info``) with a map of at least 4 x 4 on which the class score depends,
    else the largest such map; in models whose stages output no map, the same among all modules as wide as the last
    features (which excludes attention matrices and queries). For a vision transformer with a class token it is the
    block before the last, whose image tokens do not reach the score.

    Args:
        model: Maps images (B, C, H, W) to logits (B, K).
        image: One image (1, C, H, W), on the model's device.
        name: Use this module instead.

    Raises:
        UserError: There is no such module, or it has no map that the score depends on.
    """
    maps = _probe(model, image)
    stages = [stage for stage in _stage_names(model)[::-1] if stage in maps]
    modules = dict(model.named_modules())
    if name is not None:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=3) or stages[:3]
            raise UserError(f"the model has no layer '{name}': did you mean {', '.join(near)}?")
        if name not in maps:
            raise UserError(f"layer '{name}' has no map that the class score depends on; try one of {_some(maps)}")
        return TargetLayer(name, modules[name], maps[name][1:])
    width = getattr(model, "num_features", None)
    candidates = stages or [item for item in maps if maps[item][0] == width][::-1] or list(maps)[::-1]
    if not candidates:
        raise UserError("no layer of this model has a map that the class score depends on: is the head all zeros?")
    found = next((item for item in candidates if min(maps[item][1:]) >= MIN_SIDE), None)
    found = found or max(candidates, key=lambda item: math.prod(maps[item][1:]))
    return TargetLayer(found, modules[found], maps[found][1:])


def _probe(model: nn.Module, image: Tensor) -> dict[str, tuple[int, int, int]]:
    """Map shapes (C, h, w), in order of execution, of the modules that run once and on which the highest score depends.

    For tokens, the image tokens must reach the score, not only a class token.
    """
    outputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    size, layout = (image.shape[2], image.shape[3]), model_layout(model)

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        calls[name] += 1
        if isinstance(output, Tensor) and output.requires_grad and len(output) == len(image):
            outputs[name] = output

    handles = [module.register_forward_hook(partial(record, name)) for name, module in model.named_modules() if name]
    try:
        with torch.enable_grad():
            score = model(image.detach().clone().requires_grad_()).max()
            gradients = torch.autograd.grad(score, list(outputs.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, gradient in zip(outputs, gradients, strict=True):
        maps = None if gradient is None or calls[name] > 1 else to_maps(gradient, size, **layout)
        if maps is not None and bool(maps.any()):
            found[name] = (maps.shape[1], *_side(maps))
    return found


def _stage_names(model: Any) -> list[str]:
    info = getattr(model, "feature_info", None) or []
    entries = getattr(info, "info", info)  # a list, or timm's FeatureInfo around one
    return [entry["module"] for entry in entries if isinstance(entry, dict) and "module" in entry]


def _side(maps: Tensor) -> tuple[int, int]:
    return maps.shape[2], maps.shape[3]


def _misfit(size: tuple[int, int], grid: tuple[int, int]) -> float:
    """Distance of the strides along height and width, as a logarithm."""
    return abs(math.log(size[0] * grid[1] / (size[1] * grid[0])))


def _fits(size: tuple[int, int], grid: tuple[int, int]) -> bool:
    """Whether one stride fits both sides, up to a last position that is partly outside the image."""
    (height, width), (h, w) = size, grid
    return h <= height and w <= width and abs(h - w * height / width) < 1 and abs(w - h * width / height) < 1


def _token_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    grids = [(h, tokens // h) for h in range(1, tokens + 1) if tokens % h == 0]
    best = min(grids, key=lambda grid: _misfit(size, grid), default=None)
    return best if best is not None and _fits(size, best) else None


def _some(maps: Iterable[str]) -> str:
    return ", ".join([name for name in maps if name.count(".") <= 1][-4:] or list(maps)[-4:])
