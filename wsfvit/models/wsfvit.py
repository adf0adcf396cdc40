"""WSF-ViT: wavelet spatial-frequency vision transformer.

Two families from the same classes, with the same parameters and state-dict keys:
- `wsfvit_*`: the published architecture. The wavelet stem puts the subbands into the channels, and the three attention
  parts of a block work in the pixel domain.
- `wsfvit_dwt_*`: the attention parts work on explicit Haar subbands. A block transforms its map once, folds the four
  half-resolution subbands into the batch, attends inside each subband and between them, and transforms back once.

Read in this order: WSFBlockCfg, WSFBlock, WSFViTCfg, WSFViT (its forward is StagedClassifier's), model_cfgs.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import LayerNorm2d, NormMlpClassifierHead, calculate_drop_path_rates, to_2tuple
from timm.models import generate_default_cfgs
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from wsfvit.layers import (
    GELU,
    NUM_SUBBANDS,
    InterSubbandAttention,
    MBConv,
    PartitionAttention,
    SubbandLayerNorm,
    WaveletStem,
    from_subbands,
    to_nchw,
    to_subbands,
)

from ._family import check_one_per_stage, override_cfg, register_variants
from ._staged import Stage, StagedClassifier
from ._state_dict import adapt_stem_channels, resize_bias_tables


@dataclass(frozen=True, kw_only=True)
class WSFBlockCfg:
    """What the blocks of a model share, whatever their width.

    Attributes:
        head_dim: Head width of local and global attention.
        mlp_ratio: Hidden width of the MLPs of local and global attention over the stage width.
        inter_mlp_ratio: The same for the inter-subband part.
        gelu: "tanh" approximation or "none" for the exact GELU, in convolutions and in the MLPs of local and global
            attention; the inter-subband MLP always has the exact one.
        conv_norm_eps: Epsilon of every BatchNorm.
        norm_eps: Epsilon of every LayerNorm.
        inter_norm_eps: Epsilon of the LayerNorms of the inter-subband part; None: as everywhere.
        joint_subband_norm: Only with explicit_dwt: LayerNorm statistics over the four subbands of a location together.
        full_subband_scale: Only with explicit_dwt: inter-subband softmax scale (4d)^-1/2 instead of d^-1/2.
        subband_embed: Only with explicit_dwt: a learned vector per subband, added to its tokens (adds parameters).
    """

    head_dim: int
    mlp_ratio: float = 4.0
    inter_mlp_ratio: float = 4.0
    gelu: Literal["tanh", "none"] = "tanh"
    conv_norm_eps: float = 1e-3
    norm_eps: float = 1e-5
    inter_norm_eps: float | None = None
    joint_subband_norm: bool = False
    full_subband_scale: bool = False
    subband_embed: bool = False


@dataclass(frozen=True, kw_only=True)
class WSFViTCfg(WSFBlockCfg):
    """What defines a variant. Every field can be overridden by keyword: `create_model(name, depths=(1, 1, 1, 1))`.

    Attributes:
        embed_dims: Width of each stage.
        depths: Blocks of each stage.
        inter_heads: Heads of the inter-subband attention in each stage.
        stem_width: Output width of the stem.
        head_hidden_size: Hidden width of the classifier head.
        explicit_dwt: Attention on explicit Haar subbands in every stage but the last (the `wsfvit_dwt_*` family).
        stem_stride: 2, or 1 for small images.
        stage_strides: Stride of each stage's first block, 1 or 2.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    inter_heads: tuple[int, ...]
    stem_width: int
    head_hidden_size: int
    explicit_dwt: bool = False
    stem_stride: int = 2
    stage_strides: tuple[int, ...] = (2, 2, 2, 2)


class WSFBlock(nn.Module):
    """MBConv, local (window), inter-subband (channel) and global (grid) attention, each with its residuals.

    Args:
        in_chs: Input channels C.
        out_chs: Output channels D.
        cfg: Configuration of the block, or of the variant.
        inter_heads: Heads of the inter-subband attention.
        window_size: Window and grid (P, Q).
        stride: Of the MBConv.
        explicit_dwt: Attend on explicit Haar subbands instead of in the pixel domain.
        drop_path: Stochastic depth rate of every residual.

    Shape: (B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride)), channels-last memory.
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
        joint_norm = explicit_dwt and cfg.joint_subband_norm
        norm = SubbandLayerNorm if joint_norm else nn.LayerNorm
        inter_norm_eps = cfg.norm_eps if cfg.inter_norm_eps is None else cfg.inter_norm_eps
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
            norm_layer=partial(norm, eps=inter_norm_eps),
        )
        self.attn_global = part(partition="grid")
        embeds = explicit_dwt and cfg.subband_embed
        self.subband_embed = nn.Parameter(torch.zeros(NUM_SUBBANDS, 1, 1, out_chs)) if embeds else None

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Changes window and grid and interpolates the bias tables."""
        self.attn_local.set_window_size(window_size)
        self.attn_global.set_window_size(window_size)

    def _attend(self, x: Tensor) -> Tensor:
        return self.attn_global(self.attn_inter(self.attn_local(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if not self.explicit_dwt:
            return self._attend(x)
        _, _, H, W = x.shape
        # The transform is linear, so the residual stream can stay in the wavelet domain across the three parts.
        x = to_subbands(x)
        if self.subband_embed is not None:
            x = x + to_nchw(self.subband_embed).repeat(x.shape[0] // NUM_SUBBANDS, 1, 1, 1)
        return from_subbands(self._attend(x), (H, W))


class WSFViT(StagedClassifier):
    """WSF-ViT image classifier and feature extractor.

    Args:
        cfg: The variant.
        img_size: Nominal image size, an int or (H, W). It only sets the window: any image of at least 32 x 32 runs.
        window_size: Window = grid, an int or (P, Q); default ceil(img_size / total stride), the last stage's map.
        in_chans: Image channels.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: "avg", "max", ... as in timm, or "" for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 over all blocks.
        **overrides: Fields of WSFViTCfg.

    Shape: images (B, in_chans, H, W) -> logits (B, num_classes).

    Raises:
        TypeError: On a keyword that is no field of WSFViTCfg.
        ValueError: On fields that do not fit each other.
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
        self.cfg = cfg = _override_cfg(cfg, overrides)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.embed_dim = cfg.embed_dims[-1]
        self.img_size = to_2tuple(img_size)
        # The stem's conv1 is adapted to other channel counts together with its norm, by checkpoint_filter_fn.
        self._traits = {"first_conv": None}
        self.register_load_state_dict_pre_hook(resize_bias_tables)

        self.stem = WaveletStem(
            in_chans, cfg.stem_width, cfg.stem_stride, partial(GELU, approximate=cfg.gelu), cfg.conv_norm_eps
        )
        stride = cfg.stem_stride
        self.feature_info = [dict(num_chs=cfg.stem_width, reduction=stride, module="stem")]
        for i, dim in enumerate(cfg.embed_dims):
            stride *= cfg.stage_strides[i]
            self.feature_info += [dict(num_chs=dim, reduction=stride, module=f"stages.{i}")]
        self.total_stride = stride

        window = self._resolve_window(window_size)
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, cfg.depths, stagewise=True)
        in_widths = (cfg.stem_width, *cfg.embed_dims[:-1])
        stages = []
        for i, (in_chs, dim) in enumerate(zip(in_widths, cfg.embed_dims, strict=True)):
            block = partial(
                WSFBlock,
                out_chs=dim,
                cfg=cfg,
                inter_heads=cfg.inter_heads[i],
                window_size=window,
                # One window covers the last stage's map at the nominal size: nothing is left to divide there.
                explicit_dwt=cfg.explicit_dwt and i < len(cfg.embed_dims) - 1,
            )
            rates = drop_path_rates[i]
            first = block(in_chs, stride=cfg.stage_strides[i], drop_path=rates[0])
            stages.append(Stage([first, *(block(dim, drop_path=rate) for rate in rates[1:])]))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity()
        self.head = NormMlpClassifierHead(
            self.num_features,
            num_classes,
            hidden_size=cfg.head_hidden_size,
            pool_type=global_pool,
            drop_rate=drop_rate,
            norm_layer=partial(LayerNorm2d, eps=cfg.norm_eps),
        )
        self.head_hidden_size = self.head.num_features

    def _resolve_window(self, window_size: int | tuple[int, int] | None) -> tuple[int, int]:
        if window_size is not None:
            return to_2tuple(window_size)
        return (-(-self.img_size[0] // self.total_stride), -(-self.img_size[1] // self.total_stride))

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        window_size: int | tuple[int, int] | None = None,
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
            if isinstance(module, WSFBlock):
                module.set_window_size(window)
        update_model_input_size(self, self.img_size, window_size=window if window_size is not None else None)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed besides norms and biases."""
        names = ("relative_position_bias_table", "subband_embed")
        return {name for name, _ in self.named_parameters() if name.endswith(names)}


def _override_cfg(cfg: WSFViTCfg, overrides: dict[str, Any]) -> WSFViTCfg:
    cfg = override_cfg(cfg, overrides)
    check_one_per_stage(cfg, "embed_dims", "depths", "inter_heads", "stage_strides")
    return cfg


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
    """Adapts pretrained weights to the model's image channels; `resize_bias_tables` does the window on every load."""
    return adapt_stem_channels(state_dict, model.in_chans)


def _cfg(name: str) -> dict[str, Any]:
    """Preprocessing of the release: crop 0.875 for P and N, 0.95 else; Inception statistics and squashing at 384."""
    size = int(name.rsplit("_", 1)[1])
    small = name.split("_")[-2] in ("p0", "p1", "p2", "n")
    return dict(
        url="",
        num_classes=1000,
        input_size=(3, size, size),
        fixed_input_size=True,  # timm then hands --img-size to the constructor; the model itself runs on any size
        pool_size=(size // 32, size // 32),
        crop_pct=0.875 if small else 0.95,
        crop_mode="squash" if size == 384 else "center",
        interpolation="bicubic",
        mean=IMAGENET_INCEPTION_MEAN if size == 384 else IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_INCEPTION_STD if size == 384 else IMAGENET_DEFAULT_STD,
        first_conv="stem.conv1",
        classifier="head.fc",
        license="apache-2.0",
    )


default_cfgs = generate_default_cfgs({name: _cfg(name) for name in model_cfgs})


register_variants(
    __name__, WSFViT, model_cfgs, dict(feature_cls="getter", out_indices=(0, 1, 2, 3, 4)), checkpoint_filter_fn
)
