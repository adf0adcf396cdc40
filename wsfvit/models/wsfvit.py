"""WSF-ViT: wavelet spatial-frequency vision transformer.

Two families from the same classes, with the same parameters and state-dict keys:
- `wsfvit_*`: the published architecture. The wavelet stem puts the subbands into the channels, and the three attention
  parts of a block work in the pixel domain.
- `wsfvit_dwt_*`: the attention parts work on explicit Haar subbands. A block transforms its map once, folds the four
  half-resolution subbands into the batch, attends inside each subband and between them, and transforms back once.

Read in this order: WSFBlockCfg, WSFBlock, WSFViTCfg, WSFViT, model_cfgs.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import LayerNorm2d, NormMlpClassifierHead, calculate_drop_path_rates, to_2tuple
from timm.models import generate_default_cfgs, register_model
from timm.models._input import update_model_input_size
from torch import Tensor, fx, nn

from wsfvit.layers import (
    GELU,
    NUM_SUBBANDS,
    InterSubbandAttention,
    MBConv,
    PartitionAttention,
    SubbandLayerNorm,
    WaveletStem,
    from_subbands,
    to_subbands,
)

from ._classifier import Stage, StagedClassifier
from ._family import build_variant, check_one_per_stage, override_cfg
from ._published import PUBLISHED
from ._state_dict import adapt_stem_channels, resize_bias_tables

fx.wrap("to_subbands")  # leaves of symbolic tracing in this file
fx.wrap("from_subbands")


@dataclass(frozen=True, kw_only=True)
class WSFBlockCfg:
    """Configuration shared by all blocks of a model."""

    head_dim: int  # channels of a head of local and global attention
    mlp_ratio: float = 4.0  # hidden width of the MLPs of local and global attention over the stage width
    inter_mlp_ratio: float = 4.0  # the same for inter-subband attention
    # "tanh" approximation or "none" (exact), in convolutions and in the MLPs of local and global attention; the
    # inter-subband MLP always has the exact GELU.
    gelu: Literal["tanh", "none"] = "tanh"
    conv_norm_eps: float = 1e-3  # epsilon of every BatchNorm
    norm_eps: float = 1e-5  # epsilon of every LayerNorm
    inter_norm_eps: float | None = None  # epsilon of the LayerNorms of inter-subband attention; None for norm_eps
    # Study option, with explicit_dwt: LayerNorm statistics over the four subbands of a location.
    joint_subband_norm: bool = False
    # Study option, with explicit_dwt: inter-subband softmax scale (4d)^-1/2, not d^-1/2.
    full_subband_scale: bool = False


@dataclass(frozen=True, kw_only=True)
class WSFViTCfg(WSFBlockCfg):
    """Configuration of a variant; every field is also a keyword of `create_model`, as in `depths=(1, 1, 1, 1)`."""

    embed_dims: tuple[int, ...]  # width of each stage
    depths: tuple[int, ...]  # blocks of each stage
    inter_heads: tuple[int, ...]  # heads of the inter-subband attention in each stage
    stem_width: int  # output width of the stem
    head_hidden_size: int  # hidden width of the classifier head
    # Attention on explicit Haar subbands in every stage but the last (the `wsfvit_dwt_*` family).
    explicit_dwt: bool = False
    stem_stride: int = 2  # 2, or 1 for small images
    stage_strides: tuple[int, ...] = (2, 2, 2, 2)  # stride of each stage's first block, 1 or 2


class WSFBlock(nn.Module):
    """MBConv, local (window), inter-subband (channel) and global (grid) attention, each with its residuals.

    Args:
        cfg: Configuration of the block, or of the variant.
        inter_heads: Heads of the inter-subband attention.
        window_size: Window and grid (P, Q).
        stride: Of the MBConv.
        explicit_dwt: Attend on explicit Haar subbands instead of in the pixel domain.
        drop_path: Stochastic depth rate of every residual.

    Shape: (B, in_chs, H, W) -> (B, out_chs, ceil(H / stride), ceil(W / stride)), channels-last memory.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        cfg: WSFBlockCfg,
        inter_heads: int,
        window_size: tuple[int, int],
        stride: int = 1,
        explicit_dwt: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.explicit_dwt = explicit_dwt
        norm = SubbandLayerNorm if explicit_dwt and cfg.joint_subband_norm else nn.LayerNorm
        act_layer = partial(GELU, approximate=cfg.gelu)
        part = partial(
            PartitionAttention,
            out_chs,
            cfg.head_dim,
            window_size,
            mlp_ratio=cfg.mlp_ratio,
            drop_path=drop_path,
            act_layer=act_layer,
            norm_layer=partial(norm, eps=cfg.norm_eps),
        )
        self.conv = MBConv(
            in_chs, out_chs, stride, act_layer=act_layer, norm_eps=cfg.conv_norm_eps, drop_path=drop_path
        )
        self.attn_local = part(partition="window")
        self.attn_inter = InterSubbandAttention(
            out_chs,
            inter_heads,
            num_subbands=NUM_SUBBANDS if explicit_dwt else 1,
            scale=(NUM_SUBBANDS * out_chs // inter_heads) ** -0.5 if explicit_dwt and cfg.full_subband_scale else None,
            mlp_ratio=cfg.inter_mlp_ratio,
            drop_path=drop_path,
            norm_layer=partial(norm, eps=cfg.norm_eps if cfg.inter_norm_eps is None else cfg.inter_norm_eps),
        )
        self.attn_global = part(partition="grid")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        _, _, H, W = x.shape
        if self.explicit_dwt:
            # The transform is linear, so the residual stream can stay in the wavelet domain across the three parts.
            x = to_subbands(x)
        x = self.attn_global(self.attn_inter(self.attn_local(x)))
        return from_subbands(x, (H, W)) if self.explicit_dwt else x


class WSFViT(StagedClassifier):
    """WSF-ViT image classifier and feature extractor.

    Args:
        cfg: The variant.
        img_size: Nominal image size, an int or (H, W). It only sets the window: any image of at least 32 x 32 runs.
        window_size: Window = grid, an int or (P, Q); default ceil(img_size / total stride), the last stage's map.
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: See `Classifier`.
        **overrides: Fields of WSFViTCfg.

    Shape: images (B, in_chans, H, W) -> logits (B, num_classes).

    Raises:
        TypeError: Unknown keyword.
        ValueError: Fields that do not fit each other.
    """

    def __init__(
        self,
        cfg: WSFViTCfg,
        img_size: int | tuple[int, int] = 224,
        window_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **overrides: Any,
    ) -> None:
        super().__init__()
        self.cfg = cfg = override_cfg(cfg, overrides)
        check_one_per_stage(cfg, "embed_dims", "depths", "inter_heads", "stage_strides")
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = self.embed_dim = cfg.embed_dims[-1]
        self.img_size = to_2tuple(img_size)
        # The stem's conv1 is adapted to other channel counts together with its norm, by checkpoint_filter_fn.
        self._traits = {"first_conv": None}
        self.register_load_state_dict_pre_hook(resize_bias_tables)

        act_layer = partial(GELU, approximate=cfg.gelu)
        self.stem = WaveletStem(in_chans, cfg.stem_width, cfg.stem_stride, act_layer, cfg.conv_norm_eps)
        self.feature_info = [dict(num_chs=cfg.stem_width, reduction=cfg.stem_stride, module="stem")]
        self.total_stride = cfg.stem_stride * math.prod(cfg.stage_strides)
        window = self._resolve_window(window_size)
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, cfg.depths, stagewise=True)
        in_widths = (cfg.stem_width, *cfg.embed_dims[:-1])
        stages = []
        for i, (in_chs, dim) in enumerate(zip(in_widths, cfg.embed_dims, strict=True)):
            # At the nominal size one window covers the map of the last stage.
            explicit = cfg.explicit_dwt and i < len(cfg.embed_dims) - 1
            heads, rates = cfg.inter_heads[i], drop_path_rates[i]
            block = partial(
                WSFBlock, out_chs=dim, cfg=cfg, inter_heads=heads, window_size=window, explicit_dwt=explicit
            )
            first = block(in_chs, stride=cfg.stage_strides[i], drop_path=rates[0])
            stages.append(Stage([first, *(block(dim, drop_path=rate) for rate in rates[1:])]))
            reduction = self.feature_info[-1]["reduction"] * cfg.stage_strides[i]
            self.feature_info.append(dict(num_chs=dim, reduction=reduction, module=f"stages.{i}"))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity()
        norm_layer = partial(LayerNorm2d, eps=cfg.norm_eps)
        self.head = NormMlpClassifierHead(
            self.num_features, num_classes, cfg.head_hidden_size, global_pool, drop_rate, norm_layer
        )
        self.head_hidden_size = self.head.num_features

    def _resolve_window(self, window_size: int | tuple[int, int] | None) -> tuple[int, int]:
        if window_size is not None:
            return to_2tuple(window_size)
        return (-(-self.img_size[0] // self.total_stride), -(-self.img_size[1] // self.total_stride))

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, window_size: int | tuple[int, int] | None = None
    ) -> None:
        """Sets window = grid for another image size and interpolates the bias tables.

        Args:
            img_size: New nominal size, an int or (H, W); None keeps the present one.
            window_size: New window; default ceil(img_size / total stride).
        """
        if img_size is not None:
            self.img_size = to_2tuple(img_size)
        window = self._resolve_window(window_size)
        for module in self.modules():
            if isinstance(module, PartitionAttention):
                module.set_window_size(window)
        update_model_input_size(self, self.img_size, window_size=window if window_size is not None else None)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, besides norms and biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> features of the last stage (B, C, h, w)."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits (B, num_classes), or the input of the classifier if pre_logits."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


# Published table of the family. The 384 models of T have twice the inter-subband heads of the 224 model.
_P = WSFViTCfg(
    embed_dims=(32, 64, 128, 256),
    depths=(1, 1, 2, 1),
    inter_heads=(2, 4, 8, 16),
    head_dim=32,
    stem_width=32,
    head_hidden_size=256,
)
_T = replace(_P, embed_dims=(64, 128, 256, 512), depths=(1, 2, 3, 1), head_hidden_size=512)
_S = replace(_T, depths=(2, 2, 5, 2), inter_heads=(4, 8, 16, 32), stem_width=64)
_SIZES = {
    "p0": replace(_P, embed_dims=(24, 48, 96, 192), head_dim=12, stem_width=24, head_hidden_size=192),
    "p1": _P,
    "p2": replace(_P, depths=(1, 2, 3, 1)),
    "n": replace(_P, depths=(2, 2, 5, 2), inter_heads=(4, 8, 16, 32)),
    "t": _T,
    "s": _S,
    "m": replace(
        _S, embed_dims=(80, 160, 320, 640), depths=(2, 2, 6, 2), head_dim=40, stem_width=80, head_hidden_size=640
    ),
    "b": replace(_S, embed_dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), head_hidden_size=768),
}

model_cfgs: dict[str, WSFViTCfg] = {
    **{f"wsfvit_{size}_224": cfg for size, cfg in _SIZES.items()},
    "wsfvit_b_256": _SIZES["b"],
    "wsfvit_t_384": replace(_T, inter_heads=(4, 8, 16, 32)),
    **{f"wsfvit_{size}_384": _SIZES[size] for size in ("s", "m", "b")},
    **{f"wsfvit_dwt_{size}_224": replace(cfg, explicit_dwt=True) for size, cfg in _SIZES.items()},
}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: WSFViT) -> dict[str, Tensor]:
    """Adapts pretrained weights to the model's image channels; `resize_bias_tables` adapts them to its window."""
    return adapt_stem_channels(state_dict, model.in_chans)


def _cfg(name: str) -> dict[str, Any]:
    """Preprocessing of the release: crop 0.875 for P and N, 0.95 otherwise; at 384 Inception statistics and squash."""
    size = int(name.rsplit("_", 1)[1])
    small = name.split("_")[-2] in ("p0", "p1", "p2", "n")
    return dict(
        url="",
        num_classes=1000,
        input_size=(3, size, size),
        fixed_input_size=True,  # timm then passes --img-size to the constructor; the model itself takes any size
        pool_size=(size // 32, size // 32),
        crop_pct=0.875 if small else 0.95,
        crop_mode="squash" if size == 384 else "center",
        mean=IMAGENET_INCEPTION_MEAN if size == 384 else IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_INCEPTION_STD if size == 384 else IMAGENET_DEFAULT_STD,
        first_conv="stem.conv1",
        classifier="head.fc",
        license="apache-2.0",
        paper_name=None if "_dwt_" in name else "WSF-ViT",
        origin_url=PUBLISHED[name].url if name in PUBLISHED else None,
    )


default_cfgs = generate_default_cfgs({name: _cfg(name) for name in model_cfgs})


def _create(name: str, pretrained: bool, **kwargs: Any) -> WSFViT:
    return build_variant(WSFViT, name, pretrained, model_cfgs[name], (0, 1, 2, 3, 4), checkpoint_filter_fn, **kwargs)


@register_model
def wsfvit_p0_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_p0_224", pretrained, **kwargs)


@register_model
def wsfvit_p1_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_p1_224", pretrained, **kwargs)


@register_model
def wsfvit_p2_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_p2_224", pretrained, **kwargs)


@register_model
def wsfvit_n_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_n_224", pretrained, **kwargs)


@register_model
def wsfvit_t_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_t_224", pretrained, **kwargs)


@register_model
def wsfvit_s_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_s_224", pretrained, **kwargs)


@register_model
def wsfvit_m_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_m_224", pretrained, **kwargs)


@register_model
def wsfvit_b_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_b_224", pretrained, **kwargs)


@register_model
def wsfvit_b_256(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_b_256", pretrained, **kwargs)


@register_model
def wsfvit_t_384(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_t_384", pretrained, **kwargs)


@register_model
def wsfvit_s_384(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_s_384", pretrained, **kwargs)


@register_model
def wsfvit_m_384(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_m_384", pretrained, **kwargs)


@register_model
def wsfvit_b_384(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_b_384", pretrained, **kwargs)


@register_model
def wsfvit_dwt_p0_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_dwt_p0_224", pretrained, **kwargs)


@register_model
def wsfvit_dwt_p1_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_dwt_p1_224", pretrained, **kwargs)


@register_model
def wsfvit_dwt_p2_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_dwt_p2_224", pretrained, **kwargs)


@register_model
def wsfvit_dwt_n_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_dwt_n_224", pretrained, **kwargs)


@register_model
def wsfvit_dwt_t_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_dwt_t_224", pretrained, **kwargs)


@register_model
def wsfvit_dwt_s_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_dwt_s_224", pretrained, **kwargs)


@register_model
def wsfvit_dwt_m_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_dwt_m_224", pretrained, **kwargs)


@register_model
def wsfvit_dwt_b_224(pretrained: bool = False, **kwargs: Any) -> WSFViT:
    return _create("wsfvit_dwt_b_224", pretrained, **kwargs)
