"""Wavelet embedding stem: undecimated Haar subbands of the image, then two convolutions."""

import math
from collections.abc import Callable
from functools import partial

import torch
from timm.layers import BatchNormAct2d, register_notrace_module
from torch import Tensor, fx, nn

from wsfvit.wavelets import SwtMode, haar_swt2d

from .conv import StridedConv2dSame, TanhGELU
from .cpu_training import trains_on_cpu


@register_notrace_module
class PublishedHaarSWT2d(nn.Module):
    """The published stem's transform: one undecimated Haar level with the release's signs and border.

    Subbands on the channels, subband-major: [cA, -cH, -cV, cD] of C channels each, called LL, LH, HL, HH in the
    release. The border is zero, but periodic for square images whose side is a power of two; released weights depend on
    signs and border. The two filter buffers only keep the release's state-dict keys: the transform uses sums and
    differences.

    Shape: (B, C, H, W) -> (B, 4 * C, H, W), contiguous.
    """

    def __init__(self) -> None:
        super().__init__()
        a = 0.5**0.5
        self.register_buffer("w_l", torch.tensor([[a, a]]))
        self.register_buffer("w_h", torch.tensor([[a, -a]]))

    @staticmethod
    def wraps(x: Tensor) -> bool:
        """Whether the transform of these images (B, C, H, W) is periodic."""
        H, W = x.shape[2:]
        return H == W and H & (H - 1) == 0

    def forward(self, x: Tensor) -> Tensor:
        mode: SwtMode = "periodic" if self.wraps(x) else "zero"
        return haar_swt2d(x.contiguous(), mode, flip_details=True).flatten(1, 2)


class WaveletStem(nn.Module):
    """Haar subbands -> BatchNorm + GELU -> 3x3 convolution (stride) -> BatchNorm + GELU -> 3x3 -> BatchNorm + GELU.

    `act_layer` replaces the GELUs. Shape: image (B, in_chs, H, W) -> (B, out_chs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 2,
        act_layer: Callable[..., nn.Module] = TanhGELU,
        norm_eps: float = 1e-3,
    ) -> None:
        super().__init__()
        norm_act = partial(BatchNormAct2d, eps=norm_eps, act_layer=act_layer, inplace=True)
        self.dwt_l2: nn.Module = PublishedHaarSWT2d()
        self.norm1 = norm_act(4 * in_chs)
        self.conv1 = (
            StridedConv2dSame(4 * in_chs, out_chs) if stride == 2 else nn.Conv2d(4 * in_chs, out_chs, 3, padding=1)
        )
        self.norm2 = norm_act(out_chs)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1)
        self.norm3 = norm_act(out_chs)
        for conv in (self.conv1, self.conv2):
            fan_out = 9 * out_chs
            nn.init.normal_(conv.weight, std=math.sqrt(2.0 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        # Channels-last from here to the head: faster for depthwise convolutions and attention.
        x = _to_channels_last(self.norm1(self.dwt_l2(x)))
        x = self.norm2(self.conv1(x))
        return self.norm3(self.conv2(x))


@fx.wrap
def _to_channels_last(x: Tensor) -> Tensor:
    if x.requires_grad and trains_on_cpu(x):
        # The backward of a GELU is several times slower where gradient and input differ in layout.
        x.register_hook(Tensor.contiguous)
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return x  # a memory format does not fit the mapped axis of torch.func
    return x.contiguous(memory_format=torch.channels_last)
