"""Inverted-bottleneck convolution with squeeze-excitation."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from timm.layers import BatchNormAct2d, DropPath, SEModule
from torch import Tensor, nn

from .conv import StridedConv2dSame, TanhGELU
from .cpu_training import depthwise
from .inline import TOKENS_PER_CHANNEL, can_inline, has_hooks, is_symbolic
from .layout import to_nchw, to_nhwc

# Larger maps come from fresh memory each time, which the system clears page by page.
LARGEST_MAP = 1 << 24  # bytes


class Downsample(nn.Module):
    """Shortcut with another stride or width: 2x2 average pool at stride 2, 1x1 convolution to another width.

    An odd last row or column is averaged over existing pixels.
    Shape: (B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int = 2) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
        self.expand = nn.Conv2d(in_chs, out_chs, 1) if in_chs != out_chs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.pool(x))


class MBConv(nn.Module):
    """BatchNorm -> 1x1 expand -> depthwise 3x3 -> squeeze-excite -> 1x1 project, plus shortcut (MBConv as in MaxViT).

    Each inner convolution is followed by BatchNorm (`norm_eps`) and activation; only the last has a bias. Expansion and
    squeeze-excitation ratios are relative to the output width. Strided convolutions pad as TensorFlow's SAME.

    Shape: (B, in_chs, H, W) -> (B, out_chs, ceil(H / stride), ceil(W / stride)), stride 1 or 2.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        expand_ratio: float = 4.0,
        se_ratio: float = 0.25,
        act_layer: Callable[..., nn.Module] = TanhGELU,
        norm_eps: float = 1e-3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.mid_chs = mid_chs = int(out_chs * expand_ratio)
        norm_act = partial(BatchNormAct2d, eps=norm_eps, act_layer=act_layer, inplace=True)
        keeps_shape = stride == 1 and in_chs == out_chs
        self.shortcut = nn.Identity() if keeps_shape else Downsample(in_chs, out_chs, stride)
        self.pre_norm = BatchNormAct2d(in_chs, eps=norm_eps, apply_act=False)
        self.conv1_1x1 = nn.Conv2d(in_chs, mid_chs, 1, bias=False)
        self.norm1 = norm_act(mid_chs)
        self.conv2_kxk = (
            StridedConv2dSame(mid_chs, mid_chs, groups=mid_chs, bias=False)
            if stride == 2
            else nn.Conv2d(mid_chs, mid_chs, 3, padding=1, groups=mid_chs, bias=False)
        )
        self.norm2 = norm_act(mid_chs)
        self.se = SEModule(mid_chs, rd_channels=int(out_chs * se_ratio), act_layer="silu")
        self.conv3_1x1 = nn.Conv2d(mid_chs, out_chs, 1)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        if 0 < (images := self._images_at_once(x)) < len(x):
            x = torch.cat([self._expand(some) for some in x.split(images)])
        else:
            x = self._expand(x)
        return self.drop_path(self._gate_and_project(x)) + shortcut

    def _expand(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4D, h, w)."""
        x = self.norm1(self.conv1_1x1(self.pre_norm(x)))
        return self.norm2(depthwise(self.conv2_kxk, x))

    def _images_at_once(self, x: Tensor) -> int:
        """Images whose widest maps fit into `LARGEST_MAP`, at least one, for inference on a CPU; 0: all of them."""
        if is_symbolic(x) or torch.is_grad_enabled() or self.training or x.device.type != "cpu":
            return 0
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return 0
        images = LARGEST_MAP // (x.shape[2] * x.shape[3] * self.mid_chs * x.element_size())
        # A hook would see a part of the batch.
        return 0 if images < len(x) and any(map(has_hooks, self.modules())) else max(images, 1)

    def _gate_and_project(self, x: Tensor) -> Tensor:
        """Squeeze-excite and the last convolution: (B, 4D, H, W) -> (B, D, H, W).

        With many pixels per channel, the gates scale the weights of the convolution per image instead of the map: one
        pass over the widest map less, and one map less saved for the backward.
        """
        se, conv = self.se, self.conv3_1x1
        if is_symbolic(x) or not (can_inline(se, SEModule) and can_inline(conv, nn.Conv2d)):
            return conv(se(x))
        if x.shape[2] * x.shape[3] < TOKENS_PER_CHANNEL * conv.out_channels:
            return conv(se(x))
        gates = se.gate(se.fc2(se.act(se.bn(se.fc1(x.mean((2, 3), keepdim=True))))))
        weights = conv.weight.flatten(1) * gates.flatten(1).unsqueeze(1)  # (B, D, 4D)
        out = torch.baddbmm(cast(Tensor, conv.bias), to_nhwc(x).flatten(1, 2), weights.transpose(1, 2))
        return to_nchw(out.unflatten(1, x.shape[2:]))
