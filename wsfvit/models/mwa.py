"""Vision transformers with interchangeable token mixers: MWA, AFNO, GFN and self-attention.

The comparison of "Multiscale Attention via Wavelet Neural Operators for Vision Transformers" (Nekoozadeh et al., 2023,
arXiv 2303.12398): one ViT for 32 x 32 images with 4 x 4 patches, in which only the mixer changes.
- `mwa_vit_*`: multiscale wavelet attention, `wsfvit.layers.WaveletMixer`.
- `afno_vit_*`: adaptive Fourier neural operator.
- `gfn_vit_*`: global filter.
- `sa_vit_*`: multi-head self-attention.

Weights of AFNO's and GFNet's own code load under their names: `create_model("gfn_vit_s_patch4_32", patch_size=16,
img_size=224, num_classes=1000, checkpoint_path=FILE)` is GFNet-XS.

The authors of the comparison published no code. Choices where their text is silent: two residuals per block with MWA
and self-attention, as in every pre-norm ViT, and one with AFNO and GFN, as in their authors' code; LayerNorm with
epsilon 1e-6; eight heads with biases in self-attention; class scores from the mean over the normalised tokens, no class
token. The published parameters and multiply-accumulates agree with all of them.

Read in this order: MixerViTCfg, MIXERS, MixerBlock, MixerViT, model_cfgs.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from timm.layers import (
    Attention,
    ClassifierHead,
    DropPath,
    Mlp,
    PatchEmbed,
    calculate_drop_path_rates,
    resample_abs_pos_embed_nhwc,
    to_2tuple,
    trunc_normal_,
)
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, fx, nn

from wsfvit.layers import AFNO2d, GlobalFilter, WaveletMixer, resample_filter, to_nchw, to_nhwc

from ._classifier import Classifier
from ._family import build_variant, check_sizes, override_cfg

fx.wrap("resample_abs_pos_embed_nhwc")  # a leaf of symbolic tracing in this file

_logger = logging.getLogger(__name__)

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
GridSize = tuple[int, int]


@dataclass(frozen=True)
class MixerViTCfg:
    """Configuration of a variant; every field is also a keyword of `create_model`, as in `level=2, wavelet="db2"`."""

    embed_dim: int  # width
    depth: int  # blocks
    mixer: str = "mwa"  # "mwa", "afno", "gfn" or "sa"
    patch_size: int = 4  # side of a square patch
    mlp_ratio: float = 4.0  # hidden width of the MLPs over the width
    double_skip: bool = True  # one residual around the mixer and one around the MLP, instead of one around both
    groups: int | tuple[int, int] = (8, 8)  # MWA: groups of the 3x3 and of the 1x1 convolutions, or one number for both
    level: int = 1  # MWA: levels of the wavelet transform
    wavelet: str = "haar"  # MWA: any discrete wavelet of PyWavelets
    share_kernels: bool = True  # MWA: the same 3x3 and 1x1 kernels on map and coefficients
    num_blocks: int = 4  # AFNO: blocks of the channels
    sparsity_threshold: float = 0.1  # AFNO: lambda of the soft shrinkage
    num_heads: int = 8  # self-attention: heads


class SelfAttention(Attention):
    """Multi-head self-attention between all tokens of a map: (B, H, W, C) -> the same."""

    def __init__(self, dim: int, num_heads: int) -> None:
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"self-attention: width {dim} is not a multiple of {num_heads} heads")
        super().__init__(dim, num_heads, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1, 2)).view(x.shape)


def _build_wavelet_mixer(cfg: MixerViTCfg, grid_size: GridSize) -> nn.Module:
    if 2**cfg.level > max(grid_size):
        raise ValueError(
            f"MWA: level {cfg.level} needs a map of {2**cfg.level} tokens in one direction, not {grid_size}"
        )
    return WaveletMixer(cfg.embed_dim, cfg.groups, cfg.level, cfg.wavelet, cfg.share_kernels)


MIXERS: dict[str, Callable[[MixerViTCfg, GridSize], nn.Module]] = {
    "mwa": _build_wavelet_mixer,
    "afno": lambda cfg, grid_size: AFNO2d(cfg.embed_dim, cfg.num_blocks, cfg.sparsity_threshold),
    "gfn": lambda cfg, grid_size: GlobalFilter(cfg.embed_dim, grid_size),
    "sa": lambda cfg, grid_size: SelfAttention(cfg.embed_dim, cfg.num_heads),
}


class MixerBlock(nn.Module):
    """Norm, token mixer, norm, MLP, with two residuals or one.

    Args:
        cfg: The variant's configuration.
        grid_size: Tokens of an image, (rows, columns).
        drop_path: Stochastic depth rate of every residual.

    Shape: (B, H, W, C) -> the same.
    """

    def __init__(self, cfg: MixerViTCfg, grid_size: GridSize, drop_path: float = 0.0) -> None:
        super().__init__()
        self.double_skip = cfg.double_skip
        self.norm1 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.mixer = MIXERS[cfg.mixer](cfg, grid_size)
        self.drop_path1 = DropPath(drop_path) if drop_path and cfg.double_skip else nn.Identity()
        self.norm2 = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.mlp = Mlp(cfg.embed_dim, int(cfg.embed_dim * cfg.mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixer(self.norm1(x))
        if self.double_skip:
            mixed = x = x + self.drop_path1(mixed)
        return x + self.drop_path2(self.mlp(self.norm2(mixed)))


class MixerViT(Classifier):
    """Vision transformer with a chosen token mixer: image classifier and feature extractor.

    Args:
        cfg: The variant.
        img_size: Nominal image size, an int or (H, W): the size of the position embedding and of the global filters,
            which are resampled for images of other sizes.
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: See `Classifier`.
        **overrides: Fields of MixerViTCfg.

    Shape: images (B, in_chans, H, W) -> logits (B, num_classes). A size that the patches do not divide is padded with
    zeros at the bottom and on the right.

    Raises:
        TypeError: Unknown keyword.
        ValueError: Unknown mixer or wavelet, or fields that do not fit each other.
    """

    def __init__(
        self,
        cfg: MixerViTCfg,
        img_size: int | tuple[int, int] = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **overrides: Any,
    ) -> None:
        super().__init__()
        self.cfg = cfg = override_cfg(cfg, overrides)
        if cfg.mixer not in MIXERS:
            raise ValueError(f"mixer must be one of {', '.join(MIXERS)}, not {cfg.mixer!r}")
        check_sizes(cfg, "embed_dim", "depth", "patch_size", "groups", "level", "num_blocks", "num_heads")
        if int(cfg.embed_dim * cfg.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {cfg.mlp_ratio} gives the MLPs a hidden width of 0: increase it")
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = self.embed_dim = self.head_hidden_size = cfg.embed_dim
        self.img_size = to_2tuple(img_size)
        self.grad_checkpointing = False

        # Without img_size, timm's patch embedding takes all sizes.
        self.patch_embed = PatchEmbed(
            None, cfg.patch_size, in_chans, cfg.embed_dim, output_fmt="NHWC", dynamic_img_pad=True
        )
        grid_size = self._grid_size()
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, *grid_size, cfg.embed_dim), std=0.02))
        rates = calculate_drop_path_rates(drop_path_rate, cfg.depth)
        self.blocks = nn.Sequential(*(MixerBlock(cfg, grid_size, rate) for rate in rates))
        self.norm: nn.Module = nn.LayerNorm(cfg.embed_dim, eps=1e-6)
        self.head = ClassifierHead(cfg.embed_dim, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.feature_info = [
            dict(num_chs=cfg.embed_dim, reduction=cfg.patch_size, module=f"blocks.{i}") for i in range(cfg.depth)
        ]
        self.apply(_init_linear)
        self.register_load_state_dict_pre_hook(_resize_on_load)

    def _grid_size(self) -> GridSize:
        patch = self.cfg.patch_size
        return (-(-self.img_size[0] // patch), -(-self.img_size[1] // patch))

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resamples position embedding and global filters for another nominal size, an int or (H, W)."""
        self.img_size = to_2tuple(img_size)
        grid_size = self._grid_size()
        pos_embed = resample_abs_pos_embed_nhwc(self.pos_embed.detach(), list(grid_size))
        self.pos_embed = nn.Parameter(pos_embed, self.pos_embed.requires_grad)
        for module in self.modules():
            if isinstance(module, GlobalFilter):
                module.set_grid_size(grid_size)
        update_model_input_size(self, self.img_size)

    def convert_state_dict(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Converts names and layouts of AFNO's and GFNet's code; other entries, also this model's, stay unchanged.

        In that code the mixer is `filter`, the classifier is `head`, and the position embedding is (1, N, C), of a
        square map.
        """
        converted = {}
        for key, value in state_dict.items():
            key = re.sub(r"^(blocks\.\d+)\.filter\.", r"\1.mixer.", key)
            key = re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", key)
            if key == "pos_embed" and isinstance(value, Tensor) and value.ndim == 3:
                side = math.isqrt(value.shape[1])
                # The strict check reports a map that is not square.
                value = value.unflatten(1, (side, side)) if side**2 == value.shape[1] else value
            converted[key] = value
        return converted

    def resize_state_dict(self, state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
        """Resamples the entries of a checkpoint of another image size; returns none where the sizes agree.

        Args:
            state_dict: Contains the position embedding (1, h, w, C), which gives the checkpoint's size.
            prefix: Of its keys.
        """
        theirs, ours = state_dict.get(f"{prefix}pos_embed"), tuple(self.pos_embed.shape[1:3])
        if not isinstance(theirs, Tensor) or theirs.ndim != 4 or tuple(theirs.shape[1:3]) == ours:
            return {}
        old = (theirs.shape[1], theirs.shape[2])
        resized = {f"{prefix}pos_embed": resample_abs_pos_embed_nhwc(theirs, list(ours))}
        for name, module in self.named_modules():
            key = f"{prefix}{name}.complex_weight"
            weight = state_dict.get(key)
            # The strict check reports filters of any other size.
            filter_shape = (old[0], old[1] // 2 + 1, self.embed_dim, 2)
            if isinstance(module, GlobalFilter) and isinstance(weight, Tensor) and weight.shape == filter_shape:
                resized[key] = resample_filter(weight, old, module.grid_size)
        return resized

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, besides norms and biases."""
        return {"pos_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by depth for layer-wise decay: stem, each block, head."""
        return dict(stem=r"^pos_embed|^patch_embed", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def _steps(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return [partial(self._run, block) for block in self.blocks]

    def _to_map(self, x: Tensor, norm: bool) -> Tensor:
        return to_nchw(self.norm(x) if norm else x)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the blocks after the last index and, if asked, norm and head; returns the non-negative indices."""
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        self.blocks = nn.Sequential(*list(self.blocks)[: max_index + 1])
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices

    def _embed(self, x: Tensor) -> Tensor:
        """Images -> tokens plus position embedding (B, ceil(H / patch), ceil(W / patch), C)."""
        x = self.patch_embed(x)
        _, H, W, _ = x.shape
        return x + resample_abs_pos_embed_nhwc(self.pos_embed, [H, W])

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x) if self.grad_checkpointing else block(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> features (B, C, ceil(H / patch), ceil(W / patch))."""
        x = self._embed(x)
        for block in self.blocks:
            x = self._run(block, x)
        return self._to_map(x, norm=True)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features (B, C, h, w) -> logits (B, num_classes), or (B, num_classes, h, w) without pooling."""
        if self.global_pool:
            return self.head(x, pre_logits=pre_logits)
        # Without pooling timm's head is its linear layer, which needs the channels last.
        return to_nchw(self.head(to_nhwc(x), pre_logits=pre_logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _init_linear(module: nn.Module) -> None:
    """Initialisation of AFNO's and GFNet's code; convolutions, also MWA's, keep torch's defaults."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _resize_on_load(model: MixerViT, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load hook: `state_dict` is the copy that torch makes for a load."""
    resized = model.resize_state_dict(state_dict, prefix)
    if resized:
        old, new = (tuple(tensors[f"{prefix}pos_embed"].shape[1:3]) for tensors in (state_dict, resized))
        _logger.warning("Resampled the checkpoint from a map of %dx%d tokens to %dx%d.", *old, *new)
        state_dict.update(resized)


# Sizes of the comparison. The text gives AFNO's thresholds, "6 to 8" groups for MWA and "4 to 3" blocks for AFNO; their
# assignment to sizes follows from the published multiply-accumulates.
_SIZES = {
    "xs": MixerViTCfg(384, 5, groups=(6, 8), num_blocks=3, sparsity_threshold=0.01),
    "s": MixerViTCfg(384, 12),
    "b": MixerViTCfg(768, 12, num_blocks=3),
}

model_cfgs: dict[str, MixerViTCfg] = {
    f"{mixer}_vit_{size}_patch4_32": replace(cfg, mixer=mixer, double_skip=mixer in ("mwa", "sa"))
    for mixer in MIXERS
    for size, cfg in _SIZES.items()
}

_CIFAR10_CFG = dict(
    url="",
    num_classes=10,
    input_size=(3, 32, 32),
    fixed_input_size=True,  # timm then passes --img-size to the constructor; the model itself takes any size
    pool_size=(8, 8),
    crop_pct=1.0,
    mean=CIFAR10_MEAN,
    std=CIFAR10_STD,
    first_conv="patch_embed.proj",
    classifier="head.fc",
    license="apache-2.0",
)
default_cfgs = generate_default_cfgs(dict.fromkeys(model_cfgs, _CIFAR10_CFG))


def _create(name: str, pretrained: bool, **kwargs: Any) -> MixerViT:
    return build_variant(MixerViT, name, pretrained, model_cfgs[name], 3, **kwargs)


@register_model
def mwa_vit_xs_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("mwa_vit_xs_patch4_32", pretrained, **kwargs)


@register_model
def mwa_vit_s_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("mwa_vit_s_patch4_32", pretrained, **kwargs)


@register_model
def mwa_vit_b_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("mwa_vit_b_patch4_32", pretrained, **kwargs)


@register_model
def afno_vit_xs_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("afno_vit_xs_patch4_32", pretrained, **kwargs)


@register_model
def afno_vit_s_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("afno_vit_s_patch4_32", pretrained, **kwargs)


@register_model
def afno_vit_b_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("afno_vit_b_patch4_32", pretrained, **kwargs)


@register_model
def gfn_vit_xs_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("gfn_vit_xs_patch4_32", pretrained, **kwargs)


@register_model
def gfn_vit_s_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("gfn_vit_s_patch4_32", pretrained, **kwargs)


@register_model
def gfn_vit_b_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("gfn_vit_b_patch4_32", pretrained, **kwargs)


@register_model
def sa_vit_xs_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("sa_vit_xs_patch4_32", pretrained, **kwargs)


@register_model
def sa_vit_s_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("sa_vit_s_patch4_32", pretrained, **kwargs)


@register_model
def sa_vit_b_patch4_32(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    return _create("sa_vit_b_patch4_32", pretrained, **kwargs)
