"""SimVP with a WSF-ViT translator: the next frames of a video in one pass.

SimVP (Gao et al., 2022) encodes each frame separately, mixes the features of all frames, concatenated along the
channels, in a translator, and decodes each predicted frame separately. Here the frames enter as undecimated Haar
subbands, and the translator consists of WSF blocks. The defaults are the published WSF-ViT system for Moving MNIST.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsfvit.layers import PublishedHaarSWT2d
from wsfvit.models.wsfvit import WSFBlock, WSFBlockCfg

Family = Literal["published", "dwt"]
# Stochastic depth of the translator's first block, which the published rule fixes.
FIRST_DROP_PATH = 0.01


@dataclass(frozen=True)
class SimVPConfig:
    """Configuration of a model: only numbers and strings, stored in checkpoints by `asdict`.

    Raises:
        ValueError: values that do not fit each other.
    """

    frames_in: int = 10  # input frames
    frames_out: int = 10  # frames predicted in one pass; `SimVP.predict` goes further
    channels: int = 1  # channels of a frame
    hid_s: int = 64  # width of encoder and decoder (spatial features of one frame)
    hid_t: int = 512  # width of the translator after its first block (features of all frames)
    n_s: int = 4  # convolutions of the encoder, and of the decoder; every second one changes the resolution by 2
    n_t: int = 2  # WSF blocks of the translator
    mlp_ratio: float = 8.0  # hidden over outer width of the MLP of the inter-subband part
    attn_mlp_ratio: float = 4.0  # likewise of the MLPs of local and global attention
    head_dim: int = 32  # head width of local and global attention
    inter_heads: int = 32  # heads of the inter-subband attention
    window_size: int = 8  # side of window and grid
    drop_path: float = 0.1  # stochastic depth of the translator's last block; rises linearly from 0.01 in the first one
    # "published": attention in the pixel domain; "dwt": on explicit Haar subbands. Same parameters.
    family: Family = "published"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("drop_path", "family") and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be a probability below 1, got {self.drop_path}")
        if self.family not in get_args(Family):
            raise ValueError(f"family must be one of {', '.join(get_args(Family))}, got '{self.family}'")
        if self.hid_s % ConvUnit.NORM_GROUPS:
            raise ValueError(f"hid_s must be even (its norms have two groups), got {self.hid_s}")
        for width in self.widths[:-1]:
            for name in ("head_dim", "inter_heads"):
                if width % getattr(self, name):
                    raise ValueError(
                        f"{name} {getattr(self, name)} must divide every width of the translator: frames_in x hid_s = "
                        f"{self.widths[0]}" + (f" and hid_t = {self.hid_t}" if self.n_t > 1 else "")
                    )

    @property
    def widths(self) -> tuple[int, ...]:
        """Width before each block of the translator, and after the last one."""
        return (self.frames_in * self.hid_s, *[self.hid_t] * (self.n_t - 1), self.frames_out * self.hid_s)

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each convolution of the encoder; the decoder undoes them in reverse order."""
        return tuple(1 + i % 2 for i in range(self.n_s))

    @property
    def reduction(self) -> int:
        """Total stride of the encoder."""
        return 2 ** (self.n_s // 2)


class SimVP(nn.Module):
    """Predicts `frames_out` frames from `frames_in` frames, of any size.

    The skip connection takes the first encoder map of an input frame to each predicted one: that of the last frame to
    the last, and so on backwards, cyclically where more frames are predicted than seen. Frames whose sides are not
    multiples of the encoder's stride are padded with zeros after the front-end, like its convolutions, and cropped at
    the end. Windows that do not divide the map are padded in the attention. Without a configuration it is the published
    system.

    Shape: frames (B, frames_in, C, H, W), values in [0, 1] -> (B, frames_out, C, H, W), not limited to [0, 1].
    """

    def __init__(self, config: SimVPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SimVPConfig()
        self.front = FrontEnd(config.channels)
        self.encoder = Encoder(4 * config.channels, config.hid_s, config.strides)
        places = [i / max(config.n_t - 1, 1) for i in range(config.n_t)]
        rates = [(1 - place) * FIRST_DROP_PATH + place * config.drop_path for place in places]
        self.translator = nn.Sequential(*(TranslatorBlock(config, i, rate) for i, rate in enumerate(rates)))
        self.decoder = Decoder(config.hid_s, config.channels, config.strides)

    def forward(self, frames: Tensor) -> Tensor:
        self._check_input(frames)
        B, _, C, H, W = frames.shape
        x = self.front(frames.flatten(0, 1))
        pad_h, pad_w = -H % self.config.reduction, -W % self.config.reduction
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        x, skip = self.encoder(_to_channels_last(x))
        _, D, h, w = x.shape
        x = self.translator(_to_channels_last(x.reshape(B, -1, h, w)))
        x = self.decoder(_to_channels_last(x.reshape(-1, D, h, w)), self._pair_skips(skip))
        return x[:, :, :H, :W].unflatten(0, (B, -1))

    def predict(self, frames: Tensor, length: int) -> Tensor:
        """Predict any number of frames: later passes take earlier predictions as input, the surplus is dropped.

        Args:
            frames: (B, frames_in, C, H, W).
            length: Number of frames, at least 1.

        Returns:
            (B, length, C, H, W); the first `frames_out` of them are those of one pass.
        """
        if length < 1:
            raise ValueError(f"length must be at least one frame, got {length}")
        seen, predicted = frames, frames[:, :0]
        while predicted.shape[1] < length:
            following = self(seen)
            predicted = torch.cat((predicted, following), 1)
            seen = torch.cat((seen, following), 1)[:, -self.config.frames_in :]
        return predicted[:, :length]

    def _pair_skips(self, skip: Tensor) -> Tensor:
        seen, wanted = self.config.frames_in, self.config.frames_out
        if seen == wanted:
            return skip
        order = [(seen - wanted + i) % seen for i in range(wanted)]
        return skip.unflatten(0, (-1, seen))[:, order].flatten(0, 1)

    def _check_input(self, frames: Tensor) -> None:
        wanted = (self.config.frames_in, self.config.channels)
        if frames.ndim != 5 or tuple(frames.shape[1:3]) != wanted or 0 in frames.shape:
            raise ValueError(
                f"frames must have the shape (B, {wanted[0]}, {wanted[1]}, H, W), got {tuple(frames.shape)}: the model "
                f"takes {wanted[0]} frames of {wanted[1]} channels"
            )
        if not frames.is_floating_point():
            raise ValueError(f"frames must be floating point with values in [0, 1], got {frames.dtype}")


class FrontEnd(nn.Module):
    """Undecimated Haar subbands of each frame -> BatchNorm -> ReLU: (N, C, H, W) -> (N, 4 * C, H, W), any size.

    Signs and border as published: periodic for square frames whose side is a power of two, zero for all others.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwt = PublishedHaarSWT2d()
        self.norm = nn.BatchNorm2d(4 * channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.dwt(x)))


class ConvUnit(nn.Module):
    """3x3 convolution -> GroupNorm -> SiLU; with `upsample`, PixelShuffle by 2 after the convolution.

    Shape: (N, C, H, W) -> (N, D, ceil(H / stride), ceil(W / stride)), or (N, D, 2 * H, 2 * W).
    """

    NORM_GROUPS = 2

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1, upsample: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs * (4 if upsample else 1), 3, stride=stride, padding=1)
        self.shuffle = nn.PixelShuffle(2) if upsample else nn.Identity()
        self.norm = nn.GroupNorm(self.NORM_GROUPS, out_chs)
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        nn.init.zeros_(self.conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.shuffle(self.conv(x)))
        # Without gradients nothing else needs the norm's output.
        return F.silu(x, inplace=not torch.is_grad_enabled())


class Encoder(nn.Module):
    """Convolutions with `strides`: (N, C, H, W) -> features (N, D, h, w), and those of the first one, (N, D, H, W)."""

    def __init__(self, in_chs: int, width: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.first = ConvUnit(in_chs, width, strides[0])
        self.rest = nn.Sequential(*(ConvUnit(width, width, stride) for stride in strides[1:]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.first(x)
        return self.rest(skip), skip


class Decoder(nn.Module):
    """Reverses the `strides` of the encoder; adds the skip connection before the last convolution.

    Shape: features (N, D, h, w), skip (N, D, H, W) -> frames (N, C, H, W).
    """

    def __init__(self, width: int, channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        units = [ConvUnit(width, width, upsample=stride == 2) for stride in reversed(strides)]
        self.first = nn.Sequential(*units[:-1])
        self.last = units[-1]
        self.readout = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.readout(self.last(self.first(x) + skip))


class TranslatorBlock(nn.Module):
    """A WSF block at constant width and resolution, and a 1x1 convolution where the next width differs.

    Shape: (B, C, h, w) -> (B, D, h, w), C and D the entries `index` and `index` + 1 of the configuration's widths.
    """

    def __init__(self, config: SimVPConfig, index: int, drop_path: float) -> None:
        super().__init__()
        width, next_width = config.widths[index : index + 2]
        cfg = WSFBlockCfg(
            head_dim=config.head_dim,
            mlp_ratio=config.attn_mlp_ratio,
            inter_mlp_ratio=config.mlp_ratio,
            gelu="none",
            conv_norm_eps=1e-5,
            norm_eps=1e-6,
            inter_norm_eps=1e-5,
        )
        window, explicit = (config.window_size, config.window_size), config.family == "dwt"
        heads = config.inter_heads
        self.block = WSFBlock(width, width, cfg, heads, window, explicit_dwt=explicit, drop_path=drop_path)
        self.proj = nn.Conv2d(width, next_width, 1) if width != next_width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.block(x))


def _to_channels_last(x: Tensor) -> Tensor:
    """Channels-last memory, in which convolutions, group norms and attention are fastest; same shape."""
    return x.contiguous(memory_format=torch.channels_last)
