"""WaveMix: convolutional token mixing on a Haar pyramid (Jeevan et al., arXiv 2203.03689 and 2205.14375).

A block reduces its map to a quarter of the channels, computes the wavelet pyramid of the result, and goes back from the
coarsest level to the finest: at each level an MLP mixes the subbands and the output of the coarser level, and a
transposed convolution doubles the size. All blocks have the same resolution and width. Three forms of the block:

- "pyramid": levels 1 to 4, from coarse to fine. Level 1 is called WaveMix-Lite; version 2 is level 3 with a wider head.
- "parallel": version 1, four levels side by side through one shared MLP.
- "pixel_shuffle": version 3, one level, brought back up by a pixel shuffle and a 3x3 convolution.

The published implementation computes the pyramid again for each level; here a block computes it once. Parameter names
and the order of input channels are the published ones, so released weights load unchanged. Sides that 2^level or the
patch size does not divide, an error in the published code, are padded with zeros, and the result is cropped.

Read in this order: WaveMixCfg and WaveBlock (`wavemix_blocks.py`), WaveMixTrunk, WaveMix, model_cfgs; the models for
segmentation and super-resolution are in `wavemix_heads.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates, get_device_dtype
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ._classifier import IntermediatesMixin
from ._family import build_global_pool, build_variant, override_cfg
from ._state_dict import StrictLoadMixin
from .wavemix_blocks import BLOCKS, WaveMixCfg, build_stem


class WaveMixTrunk(StrictLoadMixin, nn.Module):
    """Stem (`conv`) and blocks (`layers`), named as published; shared by the classifier and the dense models.

    Args:
        cfg: The variant.
        in_chans: Image channels.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0; none in the published models.

    Raises:
        ValueError: Unknown wavelet.
    """

    def __init__(self, cfg: WaveMixCfg, in_chans: int = 3, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.cfg = cfg
        self.in_chans = in_chans
        self.num_features = self.embed_dim = cfg.embed_dim
        self.grad_checkpointing = False
        rates = calculate_drop_path_rates(drop_path_rate, cfg.depth)
        self.layers = nn.Sequential(*(BLOCKS[cfg.block](cfg, rate) for rate in rates))
        self.conv = build_stem(cfg, in_chans)
        self.feature_info = [
            dict(num_chs=cfg.embed_dim, reduction=cfg.reduction, module=f"layers.{i}") for i in range(cfg.depth)
        ]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Empty: all parameters but norms and biases have weight decay."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by depth for layer-wise decay; every block is a group, coarse or not."""
        return dict(stem=r"^conv", blocks=[(r"^layers\.(\d+)", None), (r"^final", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> features (B, d, ceil(H / r), ceil(W / r)), r = cfg.reduction."""
        x = self.conv(x)
        for block in self.layers:
            x = self._run_block(block, x)
        return x

    def _run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(block, x)
        return block(x)


class WaveMix(IntermediatesMixin, WaveMixTrunk):
    """WaveMix image classifier and feature extractor, for images of any size.

    Args:
        cfg: The variant.
        in_chans, num_classes, global_pool, drop_path_rate: See `Classifier`.
        drop_rate: Dropout before the classifier (that of the blocks is `block_drop_rate`).
        **overrides: Fields of WaveMixCfg.

    Shape: images (B, in_chans, H, W) -> logits (B, num_classes).

    Raises:
        TypeError: Unknown keyword.
        ValueError: Invalid value of a field.
    """

    def __init__(
        self,
        cfg: WaveMixCfg,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **overrides: Any,
    ) -> None:
        super().__init__(override_cfg(cfg, overrides), in_chans, drop_path_rate)
        cfg = self.cfg
        self.drop_rate = drop_rate
        self.global_pool = global_pool
        self.head_hidden_size = cfg.embed_dim if cfg.head_dim is None else cfg.head_dim
        self.final = nn.Identity() if cfg.head_dim is None else nn.Conv2d(cfg.embed_dim, cfg.head_dim, 1)
        self.reset_classifier(num_classes)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer, or Identity."""
        return self.pool[2]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier, keeping the model's device, dtype and mode.

        Args:
            num_classes: Classes; 0 for none.
            global_pool: New pooling, "" for none; None keeps the present one.

        Raises:
            ValueError: Classes without pooling, or a pooling that changes the width.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if num_classes and not pool:
            raise ValueError(f"a classifier of {num_classes} classes needs a global_pool")
        factory = get_device_dtype(self)
        # The published name of the linear layer is pool.2.
        self.pool = nn.Sequential(
            build_global_pool(pool),
            nn.Dropout(self.drop_rate),
            nn.Linear(self.head_hidden_size, num_classes, **factory) if num_classes else nn.Identity(),
        ).train(self.training)
        self.num_classes, self.global_pool = num_classes, pool

    def _embed(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def _steps(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return [partial(self._run_block, block) for block in self.layers]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the head and the blocks after the last index; returns the indices as non-negative numbers."""
        take_indices, max_index = feature_take_indices(len(self.layers), indices)
        self.layers = nn.Sequential(*list(self.layers)[: max_index + 1])
        if prune_head:
            self.final = nn.Identity()
            self.head_hidden_size = self.num_features
            self.reset_classifier(0, "")
        return take_indices

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits (B, num_classes), or the input of the classifier if pre_logits."""
        pool, drop, classifier = self.pool
        x = drop(pool(self.final(x)))
        return x if pre_logits else classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# Published configurations, named width_depth. Lite: level 1 on small images, which a strided stem of stride 1 keeps at
# full resolution.
_LITE = WaveMixCfg(embed_dim=144, depth=7, stem="strided", stem_stride=1)
_BASE = WaveMixCfg(embed_dim=192, depth=16, level=3)
_V1 = replace(_LITE, embed_dim=128, block="parallel", level=4)

model_cfgs: dict[str, WaveMixCfg] = {
    "wavemix_lite_64_6": replace(_LITE, embed_dim=64, depth=6),
    "wavemix_lite_112_16": replace(_LITE, embed_dim=112, depth=16),
    "wavemix_lite_144_7": _LITE,
    "wavemix_lite_256_7": replace(_LITE, embed_dim=256),
    "wavemix_lite_256_8": replace(_LITE, embed_dim=256, depth=8),
    "wavemix_lite_256_10": replace(_LITE, embed_dim=256, depth=10),
    "wavemix_lite_256_12": replace(_LITE, embed_dim=256, depth=12),
    "wavemix_lite_320_8": replace(_LITE, embed_dim=320, depth=8),
    "wavemix_192_16_l1": replace(_BASE, level=1),
    "wavemix_192_16_l3": _BASE,
    "wavemix_256_16_l3": replace(_BASE, embed_dim=256),
    "wavemix_256_16_l4": replace(_BASE, embed_dim=256, level=4, stem="strided"),
    "wavemix_256_12_l2": replace(_BASE, embed_dim=256, depth=12, level=2, patch_size=8),
    "wavemix_v1_128_7": _V1,
    "wavemix_v1_256_7": replace(_V1, embed_dim=256),
    "wavemix_v2_240_12": replace(_BASE, embed_dim=240, depth=12, head_dim=1024),
    "wavemix_v3_144_16": replace(_BASE, embed_dim=144, level=1, mlp_ratio=4, block="pixel_shuffle"),
}

# Image size and classes of the dataset that a configuration was published for: EMNIST Letters (112_16), CIFAR-10,
# CIFAR-100, Tiny-ImageNet, Places-365. The others: ImageNet at 224.
_DATA = {
    "wavemix_lite_64_6": (32, 10),
    "wavemix_lite_112_16": (28, 26),
    "wavemix_lite_144_7": (32, 10),
    "wavemix_lite_256_7": (32, 100),
    "wavemix_lite_256_8": (32, 100),
    "wavemix_lite_256_10": (32, 100),
    "wavemix_lite_256_12": (64, 200),
    "wavemix_lite_320_8": (32, 10),
    "wavemix_256_16_l4": (256, 1000),
    "wavemix_256_12_l2": (256, 365),
    "wavemix_v1_128_7": (32, 10),
    "wavemix_v1_256_7": (64, 1000),
}


def _cfg(name: str) -> dict[str, Any]:
    """Preprocessing: the whole image up to 64 pixels, else timm's default crop; the authors do not state theirs."""
    size, num_classes = _DATA.get(name, (224, 1000))
    side = -(-size // model_cfgs[name].reduction)
    return dict(
        url="",
        num_classes=num_classes,
        input_size=(3, size, size),
        pool_size=(side, side),
        crop_pct=0.875 if size > 64 else 1.0,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv="conv.0",
        classifier="pool.2",
        license="mit",
    )


default_cfgs = generate_default_cfgs({name: _cfg(name) for name in model_cfgs})


def _create(name: str, pretrained: bool, **kwargs: Any) -> WaveMix:
    return build_variant(WaveMix, name, pretrained, model_cfgs[name], 3, **kwargs)


@register_model
def wavemix_lite_64_6(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_lite_64_6", pretrained, **kwargs)


@register_model
def wavemix_lite_112_16(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_lite_112_16", pretrained, **kwargs)


@register_model
def wavemix_lite_144_7(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_lite_144_7", pretrained, **kwargs)


@register_model
def wavemix_lite_256_7(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_lite_256_7", pretrained, **kwargs)


@register_model
def wavemix_lite_256_8(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_lite_256_8", pretrained, **kwargs)


@register_model
def wavemix_lite_256_10(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_lite_256_10", pretrained, **kwargs)


@register_model
def wavemix_lite_256_12(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_lite_256_12", pretrained, **kwargs)


@register_model
def wavemix_lite_320_8(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_lite_320_8", pretrained, **kwargs)


@register_model
def wavemix_192_16_l1(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_192_16_l1", pretrained, **kwargs)


@register_model
def wavemix_192_16_l3(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_192_16_l3", pretrained, **kwargs)


@register_model
def wavemix_256_16_l3(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_256_16_l3", pretrained, **kwargs)


@register_model
def wavemix_256_16_l4(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_256_16_l4", pretrained, **kwargs)


@register_model
def wavemix_256_12_l2(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_256_12_l2", pretrained, **kwargs)


@register_model
def wavemix_v1_128_7(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_v1_128_7", pretrained, **kwargs)


@register_model
def wavemix_v1_256_7(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_v1_256_7", pretrained, **kwargs)


@register_model
def wavemix_v2_240_12(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_v2_240_12", pretrained, **kwargs)


@register_model
def wavemix_v3_144_16(pretrained: bool = False, **kwargs: Any) -> WaveMix:
    return _create("wavemix_v3_144_16", pretrained, **kwargs)
