"""The published SimVP with WSF blocks, rebuilt plainly, as the baseline of our video model.

The rules of `baseline.py` hold: the way such code is usually written, neither slowed down nor tuned, no code shared
with wsfvit.video. Channels-first throughout, FFT front-end, explicit attention. Its state-dict keys are those of
`wsfvit.video.SimVP`, so one set of weights runs through both sides of a comparison.
"""
# Calling an nn.Module returns Any.
# mypy: disable-error-code="no-any-return"

import torch
from torch import nn

from benchmarks.baseline import Block, BlockStyle, FFTHaarSWT2d

STYLE = BlockStyle(gelu="none", bn_eps=1e-5, ln_eps=1e-6, inter_mlp_ratio=8)


class FrontEnd(nn.Module):
    """Subbands by FFT, BatchNorm, ReLU: (N, C, H, W) -> (N, 4C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwt = FFTHaarSWT2d()
        self.norm = nn.BatchNorm2d(4 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.dwt(x)))


class ConvSC(nn.Module):
    """3x3 convolution (and PixelShuffle), GroupNorm, SiLU."""

    def __init__(self, dim: int, dim_out: int, stride: int = 1, up: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 4 * dim_out if up else dim_out, 3, stride, 1)
        self.shuffle = nn.PixelShuffle(2) if up else nn.Identity()
        self.norm = nn.GroupNorm(2, dim_out)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.shuffle(self.conv(x))))


class Encoder(nn.Module):
    """(N, 4C, H, W) -> (N, hid, H/4, W/4) and the skip (N, hid, H, W)."""

    def __init__(self, dim: int, hid: int) -> None:
        super().__init__()
        self.first = ConvSC(dim, hid)
        self.rest = nn.Sequential(ConvSC(hid, hid, 2), ConvSC(hid, hid), ConvSC(hid, hid, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skip = self.first(x)
        return self.rest(skip), skip


class Decoder(nn.Module):
    """(N, hid, H/4, W/4) and the skip (N, hid, H, W) -> (N, C, H, W)."""

    def __init__(self, hid: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(ConvSC(hid, hid, up=True), ConvSC(hid, hid), ConvSC(hid, hid, up=True))
        self.last = ConvSC(hid, hid)
        self.readout = nn.Conv2d(hid, channels, 1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.readout(self.last(self.first(x) + skip))


class TranslatorBlock(nn.Module):
    """WSF block and a 1x1 convolution to the next width."""

    def __init__(self, dim: int, dim_out: int, inter_heads: int, head_dim: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.block = Block(dim, dim, 1, inter_heads, head_dim, window, drop_path, STYLE)
        self.proj = nn.Conv2d(dim, dim_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.block(x))


class BaselineSimVP(nn.Module):
    """Published video model, (B, frames, C, H, W) -> the next frames, same shape, for H and W multiples of 4 * window.

    `frames` times `hid_s` and `hid_t` must differ: where they agree the published translator has no 1x1 convolution.
    """

    def __init__(
        self,
        frames: int = 10,
        channels: int = 1,
        hid_s: int = 64,
        hid_t: int = 512,
        inter_heads: int = 32,
        head_dim: int = 32,
        window: int = 8,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        wide = frames * hid_s
        self.front = FrontEnd(channels)
        self.encoder = Encoder(4 * channels, hid_s)
        self.translator = nn.Sequential(
            TranslatorBlock(wide, hid_t, inter_heads, head_dim, window, 0.01),
            TranslatorBlock(hid_t, wide, inter_heads, head_dim, window, drop_path),
        )
        self.decoder = Decoder(hid_s, channels)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        B, T, C, H, W = frames.shape
        x, skip = self.encoder(self.front(frames.reshape(B * T, C, H, W)))
        _, D, h, w = x.shape
        x = self.translator(x.reshape(B, T * D, h, w))
        return self.decoder(x.reshape(B * T, D, h, w), skip).reshape(B, T, C, H, W)
