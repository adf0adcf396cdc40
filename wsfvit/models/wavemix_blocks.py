"""Configuration, blocks and stems of WaveMix; `wavemix.py` describes the family and contains the models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import DropPath, register_notrace_module
from torch import Tensor, fx, nn

from wsfvit.layers import GELU
from wsfvit.wavelets import DWT2d, haar_dwt2d

from ._family import check_sizes

fx.wrap("haar_dwt2d")  # a leaf of symbolic tracing in this file

BlockType = Literal["pyramid", "parallel", "pixel_shuffle"]
StemType = Literal["strided", "patch"]
MAX_LEVEL = 4


@dataclass(frozen=True)
class WaveMixCfg:
    """Configuration of a variant; every field is also a keyword of `create_model`, as in `depth=4`.

    `create_model` ignores keywords that are None, so None can only come from the variant.
    """

    embed_dim: int  # width d of the feature map, a multiple of 4 (published as `final_dim`)
    depth: int  # number of blocks
    level: int = 1  # levels of a block's wavelet pyramid, 1 to 4
    mlp_ratio: int = 2  # hidden width of a block's MLPs over embed_dim (published as `mult`)
    # Output width of the MLPs, before the transposed convolutions; embed_dim if None (published as `ff_channel`). Not
    # used by the "pixel_shuffle" block.
    ff_dim: int | None = None
    # Form of the block. "parallel" always has level 4, "pixel_shuffle" level 1 and mlp_ratio 4.
    block: BlockType = "pyramid"
    # "strided" for two 3x3 convolutions, "patch" for two 3x3 convolutions and one of patch_size.
    stem: StemType = "patch"
    stem_stride: int = 2  # stride of both convolutions of the strided stem: 1 for small images, 2 otherwise
    patch_size: int = 4  # size and stride of the patch stem's last convolution
    block_drop_rate: float = 0.5  # dropout inside the blocks' MLPs; part of the published architecture
    # Width of a 1x1 convolution before the pooling (1024 in version 2); None for no such convolution.
    head_dim: int | None = None
    # Name of a discrete wavelet of PyWavelets. All published models use "haar"; others use mode "periodization", which
    # halves a side for every filter length.
    wavelet: str = "haar"

    def __post_init__(self) -> None:
        for name, choices in (("block", get_args(BlockType)), ("stem", get_args(StemType))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if self.level not in range(1, MAX_LEVEL + 1):
            raise ValueError(f"level must be 1, 2, 3 or 4, not {self.level!r}")
        check_sizes(self, "embed_dim", "depth", "level", "mlp_ratio", "ff_dim", "stem_stride", "patch_size", "head_dim")
        if self.embed_dim % 4:
            raise ValueError(f"embed_dim must be a multiple of 4, one quarter per subband, not {self.embed_dim}")
        if self.block == "parallel" and self.level != MAX_LEVEL:
            raise ValueError(f"the parallel block has 4 levels, not {self.level}")
        if self.block == "pixel_shuffle" and (self.level, self.mlp_ratio) != (1, 4):
            raise ValueError(
                f"the pixel_shuffle block has level 1 and mlp_ratio 4, not {self.level} and {self.mlp_ratio}"
            )

    @property
    def ff_width(self) -> int:
        return self.embed_dim if self.ff_dim is None else self.ff_dim

    @property
    def reduction(self) -> int:
        """Stride of the stem, and so of every feature map."""
        return self.patch_size if self.stem == "patch" else self.stem_stride**2


class WaveletPyramid(nn.Module):
    """All levels of a wavelet transform, each from the approximation of the one before.

    Shape: (B, C, H, W) -> for each level i from 1, (B, 4, C, ceil(H / 2^i), ceil(W / 2^i)) in the order cA, cH, cV, cD.

    Raises:
        ValueError: Unknown wavelet, at construction.
    """

    def __init__(self, level: int, wavelet: str = "haar") -> None:
        super().__init__()
        self.level = level
        self.dwt = None if wavelet == "haar" else DWT2d(wavelet, mode="periodization")

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for _ in range(self.level):
            if self.dwt is None:
                subbands = haar_dwt2d(x)
            else:
                approximation, details = self.dwt(x)
                subbands = torch.stack((approximation, *details), 1)
            levels.append(subbands)
            x = subbands[:, 0]
        return levels


class SubbandConv2d(nn.Conv2d):
    """1x1 convolution of subband-major channels with a weight in the published channel order.

    The published order of 4 * C subband channels is cA of all channels, then cH, cV and cD of channel 0, those of
    channel 1, and so on. Reordering the small weight avoids a copy of the map.

    Shape: (B, in_chs, H, W), the 4 * C subband channels, C = subband_chs, then any others -> (B, out_chs, H, W).
    """

    def __init__(self, in_chs: int, out_chs: int, subband_chs: int) -> None:
        super().__init__(in_chs, out_chs, 1)
        self.subband_chs = subband_chs

    def forward(self, input: Tensor) -> Tensor:
        C = self.subband_chs
        approximation, details, others = self.weight.split((C, 3 * C, self.in_channels - 4 * C), 1)
        details = details.unflatten(1, (C, 3)).transpose(1, 2).flatten(1, 2)
        return F.conv2d(input, torch.cat((approximation, details, others), 1), self.bias)


class CroppedSequential(nn.Sequential):
    """Layers that double a map and a final norm, before which the map is cropped to size (H, W)."""

    def forward(self, input: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        *layers, norm = self
        for layer in layers:
            input = layer(input)
        return norm(input[:, :, : size[0], : size[1]])


class WaveBlock(nn.Module):
    """x + mix(x), with the mixing on a wavelet pyramid that is computed once.

    With z_i the subbands of level i, and FF an MLP, transposed convolution and norm: u_L = FF_L(z_L), then
    u_i = FF_i(cat(z_i, u_{i+1})) down to u_1, the result. The u_i have d / 2 channels, u_1 has d.

    Shape: (B, d, H, W) -> the same.
    """

    def __init__(self, cfg: WaveMixCfg, drop_path: float = 0.0) -> None:
        super().__init__()
        d = cfg.embed_dim
        self.pyramid = WaveletPyramid(cfg.level, cfg.wavelet)
        self._build_up(cfg)
        self.reduction = nn.Conv2d(d, d // 4, 1)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def _build_up(self, cfg: WaveMixCfg) -> None:
        """Adds the layers from the pyramid back to the full size."""
        d, hidden, ff_dim = cfg.embed_dim, cfg.mlp_ratio * cfg.embed_dim, cfg.ff_width
        for i in range(1, cfg.level + 1):
            in_chs = d if i == cfg.level else d + d // 2
            out_chs = d if i == 1 else d // 2
            layers = CroppedSequential(
                SubbandConv2d(in_chs, hidden, d // 4),
                GELU(inplace=True),
                nn.Dropout(cfg.block_drop_rate),
                nn.Conv2d(hidden, ff_dim, 1),
                nn.ConvTranspose2d(ff_dim, out_chs, 4, stride=2, padding=1),
                nn.BatchNorm2d(out_chs),
            )
            self.add_module(self._name(i, cfg.level), layers)

    @staticmethod
    def _name(i: int, level: int) -> str:
        return "feedforward" if level == 1 else f"feedforward{i}"

    def mix(self, x: Tensor) -> Tensor:
        """The block without its residual."""
        levels = self.pyramid(self.reduction(x))
        sizes = [(y.shape[-2], y.shape[-1]) for y in (x, *levels[:-1])]
        up = None
        for i in range(len(levels), 0, -1):
            z = levels[i - 1].flatten(1, 2)
            layers = getattr(self, self._name(i, len(levels)))
            up = layers(z if up is None else torch.cat((z, up), 1), sizes[i - 1])
        assert up is not None
        return up

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mix(x))


class ParallelWaveBlock(WaveBlock):
    """Version 1: four levels, each through one shared MLP and its own transposed convolution to full size."""

    def _build_up(self, cfg: WaveMixCfg) -> None:
        d, hidden, ff_dim = cfg.embed_dim, cfg.mlp_ratio * cfg.embed_dim, cfg.ff_width
        self.feedforward = nn.Sequential(
            SubbandConv2d(d, hidden, d // 4),
            GELU(inplace=True),
            nn.Dropout(cfg.block_drop_rate),
            nn.Conv2d(hidden, ff_dim, 1),
            nn.Dropout(cfg.block_drop_rate),
        )
        for i in range(1, cfg.level + 1):
            up = nn.ConvTranspose2d(ff_dim, d // 4, 2**i + 2, stride=2**i, padding=1)
            self.add_module(f"ff{i}", up)
        self.depthconv = nn.Sequential(nn.Conv2d(d, d, 5, padding=2, groups=d), GELU(inplace=True), nn.BatchNorm2d(d))

    def mix(self, x: Tensor) -> Tensor:
        _, _, H, W = x.shape
        levels = self.pyramid(self.reduction(x))
        maps = [getattr(self, f"ff{i}")(self.feedforward(z.flatten(1, 2))) for i, z in enumerate(levels, 1)]
        return self.depthconv(torch.cat([up[:, :, :H, :W] for up in maps], 1))


class PixelShuffleWaveBlock(WaveBlock):
    """Version 3: one level, widened fourfold, shuffled to full size, and a 3x3 convolution."""

    def _build_up(self, cfg: WaveMixCfg) -> None:
        d = cfg.embed_dim
        self.feedforward = CroppedSequential(
            SubbandConv2d(d, 4 * d, d // 4),
            GELU(inplace=True),
            nn.Dropout(cfg.block_drop_rate),
            nn.PixelShuffle(2),
            nn.Conv2d(d, d, 3, padding=1),
            nn.BatchNorm2d(d),
        )


BLOCKS: dict[str, Callable[..., WaveBlock]] = {
    "pyramid": WaveBlock,
    "parallel": ParallelWaveBlock,
    "pixel_shuffle": PixelShuffleWaveBlock,
}


@register_notrace_module
class PatchConv2d(nn.Conv2d):
    """Convolution of P x P patches without overlap: (B, C, H, W) -> (B, D, ceil(H / P), ceil(W / P)).

    An incomplete patch at the end is padded with zeros.
    """

    def __init__(self, in_chs: int, out_chs: int, patch_size: int) -> None:
        super().__init__(in_chs, out_chs, patch_size, stride=patch_size)

    def forward(self, input: Tensor) -> Tensor:
        _, _, H, W = input.shape
        P, Q = self.kernel_size
        if H % P or W % Q:
            input = F.pad(input, (0, -W % Q, 0, -H % P))
        return super().forward(input)


def build_stem(cfg: WaveMixCfg, in_chans: int) -> nn.Sequential:
    """(B, in_chans, H, W) -> (B, d, ceil(H / cfg.reduction), ceil(W / cfg.reduction))."""
    d, stride = cfg.embed_dim, cfg.stem_stride
    if cfg.stem == "strided":
        return nn.Sequential(
            nn.Conv2d(in_chans, d // 2, 3, stride, padding=1), nn.Conv2d(d // 2, d, 3, stride, padding=1)
        )
    return nn.Sequential(
        nn.Conv2d(in_chans, d // 4, 3, padding=1),
        nn.Conv2d(d // 4, d // 2, 3, padding=1),
        PatchConv2d(d // 2, d, cfg.patch_size),
        GELU(inplace=True),
        nn.BatchNorm2d(d),
    )
