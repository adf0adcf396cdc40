"""Detection backbones: any timm model with a feature pyramid.

    backbone = DetectionBackbone("wsfvit_t_224", drop_path_rate=0.2)
    backbone.load_classifier("imagenet.pth.tar")
    c2, c3, c4, c5 = backbone(images)  # strides 4, 8, 16, 32

The published detector's backbone is the classification model without its head, plus a LayerNorm after each stage for
the pyramid. The published tiny detector has other inter-subband heads than the classifier of the same name, which no
parameter shape shows. Here both have the classifier's, which its weights were trained with;
`inter_heads=(4, 8, 16, 32)` selects the detector's.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsfvit.checkpoint.io import RESERVED_KWARGS, load_state_dict_file
from wsfvit.factory.model import check_model_name
from wsfvit.models import describe_misfit
from wsfvit.utils.errors import UserError

LEVELS = 4
NORM_EPS = 1e-6
# Options that let a family take images of other sizes than its nominal one, tried in order.
SIZE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False})
# Exceptions that models raise on arguments or image sizes that they cannot take.
REFUSALS = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError)
# Names of attention modules in the published detector's code, and in the published classifier's.
PUBLISHED_NAMES = {"attn_block": "attn_local", "attn_channel": "attn_inter", "attn_grid": "attn_global"}
BIAS_TABLE = "relative_position_bias_table"

_logger = logging.getLogger(__name__)


class DetectionBackbone(nn.Module):
    """Feature maps of the last four stages, each with its own LayerNorm.

    Args:
        name: Registered model, ours or any other of timm's with at least four strides.
        frozen_stats: Keep every BatchNorm's running statistics unchanged, also in training mode; weight and bias are
            still trained. As published, and right for pretrained weights and small batches. Pass False without
            pretrained weights, where there are no statistics to keep.
        output_norm: A LayerNorm (eps 1e-6, over channels) on each output map; the next stage gets the map before it.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 over all blocks.
        **options: For `timm.create_model`, such as ``inter_heads``, ``img_size`` or ``pretrained``.

    Shape: images (B, 3, H, W) -> four maps (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

    Attributes:
        channels: Channels of each map.
        strides: Stride of each map, in pixels of the image.
        multiple: The model takes images whose sides are multiples of this. Others are padded with zeros at the bottom
            and the right, and the maps cropped; callers that pad to it themselves save a copy.

    Raises:
        UserError: no such model, it does not take the options, has fewer than four strides, or a fixed image size.
    """

    def __init__(
        self,
        name: str,
        frozen_stats: bool = True,
        output_norm: bool = True,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.name = name
        self.frozen_stats = frozen_stats
        if drop_path_rate:
            options["drop_path_rate"] = drop_path_rate
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        plan = _plan(name, **_without_weights(options))
        self.options = {**plan.size_options, **options}
        self.channels, self.strides, self.multiple = plan.channels, plan.strides, plan.multiple
        self.body = timm.create_model(name, features_only=True, out_indices=plan.out_indices, **self.options)
        self.channels_last = plan.channels_last
        norm = partial(nn.LayerNorm, eps=NORM_EPS) if output_norm else nn.Identity
        self.norms = nn.ModuleList(norm(width) for width in self.channels)

    def train(self, mode: bool = True) -> "DetectionBackbone":
        """Sets the mode as in torch; with ``frozen_stats`` the BatchNorms stay in evaluation mode."""
        super().train(mode)
        if self.frozen_stats:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        _, _, H, W = images.shape
        below, right = -H % self.multiple, -W % self.multiple
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        maps = []
        for x, norm, stride in zip(self.body(images), self.norms, self.strides, strict=True):
            x = norm(x if self.channels_last else x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            maps.append(x[:, :, : -(-H // stride), : -(-W // stride)])
        return maps

    def load_classifier(
        self, path: str | os.PathLike[str], use_ema: bool = False, trust: bool = False, resize_bias_tables: bool = False
    ) -> list[str]:
        """Loads an image classifier's checkpoint into the model; every key and shape has to match.

        The classifier's head and last norm, which a backbone does not have, are left out and logged; returns their
        keys.

        Args:
            path, use_ema, trust: See `wsfvit.checkpoint.io.load_state_dict_file`.
            resize_bias_tables: Interpolate the position bias tables of a classifier with another window.

        Raises:
            UserError: the file cannot be read, or it holds another model.
        """
        state_dict, meta = load_state_dict_file(path, use_ema=use_ema, trust=trust)
        renamed = (".".join(PUBLISHED_NAMES.get(part, part) for part in key.split(".")) for key in state_dict)
        state_dict = dict(zip(renamed, state_dict.values(), strict=True))
        with torch.device("meta"):
            classifier = timm.create_model(self.name, **_without_weights(self.options)).state_dict()
        names = {_flat(key): key for key in self.body.state_dict()}
        left_out = [key for key in state_dict if key in classifier and _flat(key) not in names]
        fitted = {names.get(_flat(key), key): value for key, value in state_dict.items() if key not in left_out}
        if not resize_bias_tables:
            _check_bias_tables(self.body.state_dict(), fitted, path)
        if misfit := describe_misfit(self.body, fitted):  # before any weight changes
            raise UserError(f"checkpoint '{path}': {misfit}")
        self.body.load_state_dict(fitted)
        _logger.info(
            "Loaded %s weights of %s into the backbone %s; left out: %s.",
            *(meta["weights"], path, self.name, ", ".join(left_out) or "nothing"),
        )
        return left_out


@dataclass(frozen=True)
class _Plan:
    """Construction and input of a model: see `DetectionBackbone`."""

    size_options: dict[str, Any]
    out_indices: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    multiple: int
    channels_last: bool


@cache
def _plan(name: str, **options: Any) -> _Plan:
    """Determines the plan by running the model on the meta device, where nothing is computed.

    The multiple is at least the last stride: strided convolutions with SAME padding sample an odd map one cell off from
    an even one, and others drop its last row, so that maps and boxes would not be aligned.
    """
    check_model_name(name)
    body = _create_meta(name, options)
    strides, channels = tuple(body.feature_info.reduction()[-LEVELS:]), tuple(body.feature_info.channels()[-LEVELS:])
    refusal = f"model {name} cannot be a detector's backbone"
    if len(set(strides)) < LEVELS:
        raise UserError(f"{refusal}: its features have strides {list(strides)}, but four different ones are needed")
    size = options.get("img_size") or timm.get_pretrained_cfg(name).input_size[1:]
    nominal = max(size) if isinstance(size, (tuple, list)) else int(size)
    for size_options in SIZE_OPTIONS:
        if size_options:
            try:
                body = _create_meta(name, {**size_options, **options})
            except UserError:  # the family does not know the option
                continue
        channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        for multiple in dict.fromkeys((strides[-1], nominal)):
            if _takes_multiples(body, multiple, channels, strides, channels_last):
                indices = tuple(body.feature_info.out_indices[-LEVELS:])
                return _Plan(size_options, indices, channels, strides, multiple, channels_last)
    raise UserError(f"{refusal}: it takes only images of {nominal} x {nominal} pixels")


def _create_meta(name: str, options: Mapping[str, Any]) -> Any:
    try:
        with torch.device("meta"):
            return timm.create_model(name, features_only=True, **options).eval()
    except REFUSALS as err:
        shown = ", ".join(f"{key}={value}" for key, value in options.items()) or "no options"
        raise UserError(f"model {name} cannot be built as a backbone with {shown}: {err}") from err


def _without_weights(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that load weights."""
    return {key: value for key, value in options.items() if key not in RESERVED_KWARGS}


def _takes_multiples(
    body: nn.Module, multiple: int, channels: Sequence[int], strides: Sequence[int], channels_last: bool
) -> bool:
    """Whether an image with sides of 2 and 3 times ``multiple`` gives maps of the expected shapes."""
    H, W = 2 * multiple, 3 * multiple
    try:
        with torch.no_grad():
            maps = body(torch.zeros(1, 3, H, W, device="meta"))[-LEVELS:]
    except REFUSALS:
        return False
    found = [x.shape[1:] if channels_last else (*x.shape[2:], x.shape[1]) for x in maps]
    return found == [(H // stride, W // stride, width) for stride, width in zip(strides, channels, strict=True)]


def _flat(key: str) -> str:
    """Common name of a classifier's stages.0.x and of stages_0.x or model.stages.0.x in timm's feature extractors."""
    return key.removeprefix("model.").replace(".", "_")


def _check_bias_tables(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    for key in own:
        if key.endswith(BIAS_TABLE) and key in given and own[key].shape != given[key].shape:
            raise UserError(
                f"checkpoint '{path}' has bias tables of another window ({tuple(given[key].shape)} for "
                f"{tuple(own[key].shape)}): build the backbone with its img_size, or pass --resize-bias-tables"
            )
