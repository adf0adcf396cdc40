"""WA-CNN: the small CIFAR networks ResNet, VGG16-BN and MobileNetV2 with wavelet attention where they downsample.

Zhao et al., "Wavelet-Attention CNN for Image Classification", arXiv 2201.09271. `wacnn_*` has the attention and
`wacnn_*_baseline` is the same network without it, with the same parameters; `create_model(name, wavelet="db2")` selects
another wavelet. Position of the attention:
- ResNet: in the first block that strides (the second one keeps its strided convolutions, as in the authors' code).
- VGG16-BN: in place of each max pooling.
- MobileNetV2: in each block that strides, between the expansion and the depthwise convolution, which then has stride 1.

Outputs equal the authors' code, and its weights load under its names. Differences: any image size (odd maps round up,
also in the baseline's poolings, and the classifiers pool globally); VGG and MobileNetV2 take any wavelet, not only
Haar; the strided convolutions of MobileNetV2 that the attention replaces, parameters without a gradient, do not exist.

Read in this order: WACNNCfg, the three blocks, WACNN, model_cfgs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from timm.layers import ConvNormAct, DropPath, calculate_drop_path_rates, get_device_dtype
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from wsfvit.layers import WaveletAttention, WaveletAttentionPool, to_nchw, to_nhwc

from ._classifier import Stage, StagedClassifier
from ._family import build_global_pool, build_variant, check_one_per_stage, check_sizes, override_cfg


@dataclass(frozen=True)
class WACNNCfg:
    """Configuration of a variant; every field is also a keyword of `create_model`, as in `wavelet="db2"`."""

    backbone: Literal["resnet", "vgg", "mobilenetv2"]  # type of the blocks
    stem_width: int  # width of the first convolution
    widths: tuple[int, ...]  # width of each stage
    depths: tuple[int, ...]  # blocks of each stage
    strides: tuple[int, ...]  # stride of each stage's first block, 1 or 2
    final_width: int = 0  # width of a last stage of one 1x1 convolution, as in MobileNetV2; 0 for none
    hidden_sizes: tuple[int, ...] = ()  # widths of the classifier's hidden layers
    drop_rate: float = 0.0  # default dropout after each hidden layer, or before the classifier without hidden layers
    # A discrete PyWavelets wavelet; None without attention. `create_model` ignores None: use the `..._baseline` models
    # instead.
    wavelet: str | None = "haar"


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions. With a wavelet, their input is the attended map, the shortcut's its LL.

    Shape: (B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, wavelet: str | None, drop_path: float = 0.0) -> None:
        super().__init__()
        projects = stride != 1 or in_chs != out_chs
        self.attn = WaveletAttention(wavelet) if wavelet else None
        if wavelet:
            stride = 1  # the transform halves the map
        self.conv1 = ConvNormAct(in_chs, out_chs, 3, stride)
        self.conv2 = ConvNormAct(out_chs, out_chs, 3, apply_act=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut = ConvNormAct(in_chs, out_chs, 1, stride, apply_act=False) if projects else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x, skip = (x, x) if self.attn is None else self.attn(x)
        return self.act(self.drop_path(self.conv2(self.conv1(x))) + self.shortcut(skip))


class VGGBlock(nn.Module):
    """A 3x3 convolution with bias, BatchNorm and ReLU, after a downsampling if it strides.

    Shape: (B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, wavelet: str | None, drop_path: float = 0.0) -> None:
        super().__init__()
        if drop_path:
            raise ValueError("VGG has no shortcuts for stochastic depth: set drop_path_rate to 0")
        self.down = _vgg_pool(wavelet) if stride == 2 else nn.Identity()
        self.conv = ConvNormAct(in_chs, out_chs, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.down(x))


def _vgg_pool(wavelet: str | None) -> nn.Module:
    return WaveletAttentionPool(wavelet) if wavelet else nn.MaxPool2d(2, ceil_mode=True)


class InvertedResidual(nn.Module):
    """MobileNetV2's block with ReLU: 1x1 expansion, depthwise 3x3, 1x1 projection; a shortcut unless it strides.

    The shortcut is a 1x1 convolution where the width changes.

    Shape: (B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_chs: int, out_chs: int, stride: int, wavelet: str | None, drop_path: float = 0.0, expansion: int = 6
    ) -> None:
        super().__init__()
        mid_chs = expansion * in_chs
        self.expand = ConvNormAct(in_chs, mid_chs, 1)
        self.attn = WaveletAttentionPool(wavelet) if wavelet else nn.Identity()
        self.conv_dw = ConvNormAct(mid_chs, mid_chs, 3, 1 if wavelet else stride, groups=mid_chs)
        self.project = ConvNormAct(mid_chs, out_chs, 1, apply_act=False)
        self.has_skip = stride == 1
        self.drop_path = DropPath(drop_path) if drop_path and self.has_skip else nn.Identity()
        projects = self.has_skip and in_chs != out_chs
        self.shortcut = ConvNormAct(in_chs, out_chs, 1, apply_act=False) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.conv_dw(self.attn(self.expand(x))))
        return self.drop_path(out) + self.shortcut(x) if self.has_skip else out


class Head(nn.Module):
    """Global pooling, hidden layers with ReLU and dropout, dropout, classifier; per position without pooling.

    Without hidden layers the only dropout is the one before the classifier.

    Shape: (B, in_features, H, W) -> (B, num_classes), or (B, num_classes, H, W) without pooling, `pool_type` "".
    """

    def __init__(
        self, in_features: int, num_classes: int, hidden_sizes: tuple[int, ...], pool_type: str, drop_rate: float
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.drop = nn.Dropout(drop_rate)
        layers: list[nn.Module] = []
        for width_in, width in zip((in_features, *hidden_sizes), hidden_sizes, strict=False):
            layers += [*([nn.Dropout(drop_rate)] if layers else []), nn.Linear(width_in, width), nn.ReLU()]
        self.pre_logits = nn.Sequential(*layers)
        self.num_features = hidden_sizes[-1] if hidden_sizes else in_features
        self.global_pool = build_global_pool(pool_type)
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def reset(
        self, num_classes: int, pool_type: str | None = None, reset_other: bool = False, in_features: int | None = None
    ) -> None:
        """Replaces the classifier; with reset_other it drops the hidden layers and takes `in_features` channels."""
        factory = get_device_dtype(self)
        if reset_other or (in_features is not None and in_features != self.in_features):
            self.pre_logits = nn.Sequential()
            self.num_features = self.in_features = in_features or self.in_features
        if pool_type is not None:
            self.global_pool = build_global_pool(pool_type)
        self.fc = nn.Linear(self.num_features, num_classes, **factory) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        unpooled = self.global_pool.is_identity()
        if unpooled:
            x = to_nhwc(x)
        x = self.drop(self.pre_logits(x))
        if not pre_logits:
            x = self.fc(x)
        return to_nchw(x) if unpooled else x


class WACNN(StagedClassifier):
    """WA-CNN image classifier and feature extractor.

    Args:
        cfg: The variant.
        in_chans, num_classes, global_pool, drop_path_rate: See `Classifier`.
        drop_rate: Dropout of the classifier; None for that of the configuration.
        **overrides: Fields of WACNNCfg.

    Shape: images (B, in_chans, H, W) of any size -> logits (B, num_classes).

    Raises:
        TypeError: Unknown keyword.
        ValueError: Unknown backbone or wavelet, fields that do not fit each other, or stochastic depth for VGG.
    """

    def __init__(
        self,
        cfg: WACNNCfg,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "avg",
        drop_rate: float | None = None,
        drop_path_rate: float = 0.0,
        **overrides: Any,
    ) -> None:
        super().__init__()
        self.cfg = cfg = override_cfg(cfg, overrides)
        _check(cfg)
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.stem = ConvNormAct(in_chans, cfg.stem_width, 3, bias=cfg.backbone == "vgg")
        self.norm = nn.Identity()
        stages = list(_build_stages(cfg, drop_path_rate))
        self.stages = nn.Sequential(*(stage for stage, _, _ in stages))
        self.feature_info = [dict(num_chs=cfg.stem_width, reduction=1, module="stem")]
        for i, (_, width, stride) in enumerate(stages):
            reduction = stride * self.feature_info[-1]["reduction"]
            self.feature_info.append(dict(num_chs=width, reduction=reduction, module=f"stages.{i}"))
        self.num_features = self.feature_info[-1]["num_chs"]
        drop_rate = cfg.drop_rate if drop_rate is None else drop_rate
        self.head = Head(self.num_features, num_classes, cfg.hidden_sizes, global_pool, drop_rate)
        self.head_hidden_size = self.head.num_features
        if cfg.backbone == "vgg":
            self.apply(_init_vgg)

    def convert_state_dict(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Renames the entries of a state dict of the authors' code; any other one is returned unchanged.

        Drops the weights of the unused convolutions that wavelet attention replaces in MobileNetV2. The ResNets and
        VGGs of that code have the same entries with and without attention, so the file does not tell which it is.
        """
        if "stem.conv.weight" in state_dict:
            return state_dict
        names = _published_names(self)
        unused = {key.replace("wa.1", "conv2") for key in state_dict if key.endswith("wa.1.weight")}
        renamed = {}
        for key, value in state_dict.items():
            module, _, entry = key.rpartition(".")
            if key not in unused:
                renamed[f"{names.get(module, module)}.{entry}"] = value
        return renamed

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> features of the last stage (B, C, h, w)."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits (B, num_classes), or the input of the classifier if pre_logits."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _check(cfg: WACNNCfg) -> None:
    if cfg.backbone not in BLOCKS:
        raise ValueError(f"unknown backbone {cfg.backbone!r}; known: {', '.join(BLOCKS)}")
    check_one_per_stage(cfg, "widths", "depths", "strides")
    check_sizes(cfg, "stem_width", "widths", "depths", "hidden_sizes", *(["final_width"] if cfg.final_width else []))
    if not isinstance(cfg.hidden_sizes, tuple):
        raise ValueError(f"hidden_sizes takes a tuple of widths, not {cfg.hidden_sizes!r}")
    if set(cfg.strides) - {1, 2}:
        raise ValueError(f"strides are 1 or 2, got {cfg.strides}")


def _build_stages(cfg: WACNNCfg, drop_path_rate: float) -> Iterator[tuple[Stage, int, int]]:
    """Yields each stage with its width and stride."""
    rates = calculate_drop_path_rates(drop_path_rate, cfg.depths, stagewise=True)
    in_chs = cfg.stem_width
    for i, (width, stride) in enumerate(zip(cfg.widths, cfg.strides, strict=True)):
        # ResNet has attention only in the first stage that strides.
        attends = stride > 1 and not (cfg.backbone == "resnet" and max(cfg.strides[:i], default=1) > 1)
        block: Any = BLOCKS[cfg.backbone]
        if cfg.backbone == "mobilenetv2":
            block = partial(block, expansion=1 if i == 0 else 6)
        first = block(in_chs, width, stride, cfg.wavelet if attends else None, rates[i][0])
        yield Stage([first, *(block(width, width, 1, None, rate) for rate in rates[i][1:])]), width, stride
        in_chs = width
    if cfg.backbone == "vgg":
        yield Stage([_vgg_pool(cfg.wavelet)]), in_chs, 2
    if cfg.final_width:
        yield Stage([ConvNormAct(in_chs, cfg.final_width, 1)]), cfg.final_width, 1


def _init_vgg(module: nn.Module) -> None:
    """The authors' initialisation of VGG; the other backbones keep torch's defaults."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


BLOCKS = {"resnet": BasicBlock, "vgg": VGGBlock, "mobilenetv2": InvertedResidual}

_RESNET = WACNNCfg("resnet", stem_width=16, widths=(16, 32, 64), depths=(3, 3, 3), strides=(1, 2, 2))
_ATTENTION = {
    # The authors' numbers for the CIFAR ResNets of 20, 32 and 56 layers.
    "wacnn_resnet18": _RESNET,
    "wacnn_resnet34": replace(_RESNET, depths=(5, 5, 5)),
    "wacnn_resnet50": replace(_RESNET, depths=(9, 9, 9)),
    "wacnn_vgg16_bn": WACNNCfg(
        "vgg",
        stem_width=64,
        widths=(64, 128, 256, 512, 512),
        depths=(1, 2, 3, 3, 3),
        strides=(1, 2, 2, 2, 2),
        hidden_sizes=(4096, 4096),
        drop_rate=0.5,
    ),
    "wacnn_mobilenetv2": WACNNCfg(
        "mobilenetv2",
        stem_width=32,
        widths=(16, 24, 32, 64, 96, 160, 320),
        depths=(1, 2, 3, 4, 3, 3, 1),
        strides=(1, 1, 2, 2, 1, 2, 1),
        final_width=1280,
    ),
}
model_cfgs: dict[str, WACNNCfg] = {
    **_ATTENTION,
    **{f"{name}_baseline": replace(cfg, wavelet=None) for name, cfg in _ATTENTION.items()},
}


def _published_names(model: WACNN) -> dict[str, str]:
    """Names of modules with entries: from the authors' code to this one."""
    if model.cfg.backbone == "vgg":
        convs, names = _vgg_names(model)
    else:
        convs, names = _residual_names(model)
    for conv, norm, ours in convs:
        names |= {conv: f"{ours}.conv", norm: f"{ours}.bn"}
    return names


# Names of a convolution and its BatchNorm in the authors' code, and of the ConvNormAct that holds both here.
_ConvNames = list[tuple[str, str, str]]


def _vgg_names(model: WACNN) -> tuple[_ConvNames, dict[str, str]]:
    convs, index = [], 0
    for name, module in model.named_modules():
        if isinstance(module, ConvNormAct):
            convs.append((f"features.{index}", f"features.{index + 1}", name))
            index += 3
        elif isinstance(module, WaveletAttentionPool | nn.MaxPool2d):
            index += 1
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return convs, {f"classifier.{3 * i}": name for i, name in enumerate(linear)}


def _residual_names(model: WACNN) -> tuple[_ConvNames, dict[str, str]]:
    resnet = model.cfg.backbone == "resnet"
    parts = ("conv1", "conv2") if resnet else ("expand", "conv_dw", "project")
    final = f"stages.{len(model.stages) - 1}.blocks.0"
    convs, names = [("conv1", "bn1", "stem"), ("conv2", "bn2", final)], {"linear": "head.fc"}
    blocks = [(i, j) for i, depth in enumerate(model.cfg.depths) for j in range(depth)]
    for index, (i, j) in enumerate(blocks):
        theirs, ours = f"layer{i + 1}.{j}" if resnet else f"layers.{index}", f"stages.{i}.blocks.{j}"
        attends = not resnet and model.cfg.wavelet and j == 0 and model.cfg.strides[i] > 1
        for k, part in enumerate(parts, 1):
            conv = "wa.1" if attends and part == "conv_dw" else f"conv{k}"
            convs.append((f"{theirs}.{conv}", f"{theirs}.bn{k}", f"{ours}.{part}"))
        convs.append((f"{theirs}.shortcut.0", f"{theirs}.shortcut.1", f"{ours}.shortcut"))
    return convs, names


def _cfg(cfg: WACNNCfg) -> dict[str, Any]:
    side = {"resnet": 8, "vgg": 1, "mobilenetv2": 4}[cfg.backbone]
    return dict(
        url="",
        num_classes=10,
        input_size=(3, 32, 32),
        pool_size=(side, side),
        crop_pct=1.0,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        first_conv="stem.conv",
        classifier="head.fc",
    )


default_cfgs = generate_default_cfgs({name: _cfg(cfg) for name, cfg in model_cfgs.items()})

# Default of `features_only`: the last features of each resolution.
_OUT_INDICES = {"resnet": (1, 2, 3), "vgg": (1, 2, 3, 4, 5, 6), "mobilenetv2": (2, 3, 5, 7)}


def _create(name: str, pretrained: bool, **kwargs: Any) -> WACNN:
    cfg = model_cfgs[name]
    return build_variant(WACNN, name, pretrained, cfg, _OUT_INDICES[cfg.backbone], **kwargs)


@register_model
def wacnn_resnet18(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_resnet18", pretrained, **kwargs)


@register_model
def wacnn_resnet18_baseline(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_resnet18_baseline", pretrained, **kwargs)


@register_model
def wacnn_resnet34(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_resnet34", pretrained, **kwargs)


@register_model
def wacnn_resnet34_baseline(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_resnet34_baseline", pretrained, **kwargs)


@register_model
def wacnn_resnet50(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_resnet50", pretrained, **kwargs)


@register_model
def wacnn_resnet50_baseline(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_resnet50_baseline", pretrained, **kwargs)


@register_model
def wacnn_vgg16_bn(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_vgg16_bn", pretrained, **kwargs)


@register_model
def wacnn_vgg16_bn_baseline(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_vgg16_bn_baseline", pretrained, **kwargs)


@register_model
def wacnn_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_mobilenetv2", pretrained, **kwargs)


@register_model
def wacnn_mobilenetv2_baseline(pretrained: bool = False, **kwargs: Any) -> WACNN:
    return _create("wacnn_mobilenetv2_baseline", pretrained, **kwargs)
