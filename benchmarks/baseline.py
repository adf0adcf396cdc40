"""The published WSF-ViT computation, rebuilt plainly, as the baseline of our models.

FFT stem, attention as matmul, softmax, matmul, the relative position bias gathered on every forward, permutes between
channels-first and channels-last: the way such code is usually written, neither slowed down nor tuned. It uses torch and
timm.layers only and shares no code with wsfvit.layers or wsfvit.models. Its state-dict keys and shapes are those of
the published checkpoints, so one set of weights runs through both sides of a comparison.

Shapes: B batch, C channels, H and W rows and columns, N tokens, P window side; conv parts see NCHW, window and grid
attention NHWC, inter-subband attention tokens (B, N, C).
"""
# Calling an nn.Module returns Any.
# mypy: disable-error-code="no-any-return"

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, DropPath, Mlp, SqueezeExcite, create_conv2d, create_pool2d

BatchNormGELU = partial(BatchNormAct2d, eps=1e-3, act_layer="gelu_tanh")


@dataclass(frozen=True)
class BaselineCfg:
    """Sizes of one published model; `inter_heads` are the heads of the channel attention in each stage."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    inter_heads: tuple[int, ...]
    head_dim: int
    stem_width: int
    hidden: int
    img_size: int


@dataclass(frozen=True)
class BlockStyle:
    """Differences between the published systems' blocks besides their sizes; the defaults are the classifier's."""

    gelu: str = "tanh"  # or "none", exact: in convolutions and in the MLPs of local and global attention
    bn_eps: float = 1e-3
    ln_eps: float = 1e-5  # of local and global attention; the inter-subband part has 1e-5 everywhere
    inter_mlp_ratio: int = 4


CLASSIFIER = BlockStyle()
_FEW, _MANY = (2, 4, 8, 16), (4, 8, 16, 32)
# letter: embed dims, depths, inter-subband heads, window/grid head dim, stem width, head hidden width
_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int, int]] = {
    "p0": ((24, 48, 96, 192), (1, 1, 2, 1), _FEW, 12, 24, 192),
    "p1": ((32, 64, 128, 256), (1, 1, 2, 1), _FEW, 32, 32, 256),
    "p2": ((32, 64, 128, 256), (1, 2, 3, 1), _FEW, 32, 32, 256),
    "n": ((32, 64, 128, 256), (2, 2, 5, 2), _MANY, 32, 32, 256),
    "t": ((64, 128, 256, 512), (1, 2, 3, 1), _FEW, 32, 32, 512),
    "s": ((64, 128, 256, 512), (2, 2, 5, 2), _MANY, 32, 64, 512),
    "m": ((80, 160, 320, 640), (2, 2, 6, 2), _MANY, 40, 80, 640),
    "b": ((96, 192, 384, 768), (2, 2, 6, 2), _MANY, 32, 64, 768),
}
_PUBLISHED = [(size, 224) for size in _SIZES] + [("b", 256)] + [(size, 384) for size in "tsmb"]
BASELINE_CFGS = {f"wsfvit_{size}_{img_size}": BaselineCfg(*_SIZES[size], img_size) for size, img_size in _PUBLISHED}
BASELINE_CFGS["wsfvit_t_384"] = BaselineCfg(*_SIZES["t"][:2], _MANY, *_SIZES["t"][3:], 384)


class FFTHaarSWT2d(nn.Module):
    """One level of the undecimated Haar transform by FFT: each filter along the width, then along the height.

    (B, C, H, W) -> (B, 4C, H, W), subband-major in the published order and signs: LL = cA, LH = -cH, HL = -cV, HH = cD
    of PyWavelets. The canvas is the smallest power-of-two square that holds the image. Its FFT is periodic, so a square
    image that fills it wraps around; any other sees zeros beyond its last row and column.
    """

    w_l: torch.Tensor
    w_h: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        a = 0.5**0.5
        self.register_buffer("w_l", torch.tensor([[a, a]]))
        self.register_buffer("w_h", torch.tensor([[a, -a]]))

    @staticmethod
    def canvas_size(height: int, width: int) -> int:
        longest = max(height, width)
        side = 1 << (longest - 1).bit_length()
        # A side that fills the canvas would wrap; only the square power of two is meant to.
        return side * 2 if longest == side and height != width else side

    @staticmethod
    def _response(taps: torch.Tensor, side: int) -> torch.Tensor:
        # The published filter looks ahead: y[i] = taps[1] x[i] + taps[0] x[i + 1], and i + 1 is delay -1 on a circle.
        kernel = taps.new_zeros(side)
        kernel[0] += taps[0, 1]
        kernel[-1] += taps[0, 0]
        return torch.fft.fft(kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        dtype = x.dtype
        if dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        side = self.canvas_size(H, W)
        responses = [self._response(taps.to(x.dtype), side) for taps in (self.w_l, self.w_h)]
        spectrum = torch.fft.fft(F.pad(x, (0, side - W, 0, side - H)), dim=3)
        subbands = []
        # "LH" is low along the width and high along the height.
        for along_width in responses:
            columns = torch.fft.fft(torch.fft.ifft(spectrum * along_width, dim=3), dim=2)
            for along_height in responses:
                subbands.append(torch.fft.ifft(columns * along_height[:, None], dim=2).real[:, :, :H, :W])
        return torch.cat(subbands, 1).to(dtype)


class Stem(nn.Module):
    """Wavelet embedding, (B, 3, H, W) -> (B, width, H/2, W/2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwt_l2 = FFTHaarSWT2d()
        self.norm1 = BatchNormGELU(12)
        self.conv1 = create_conv2d(12, width, 3, stride=2, padding="same", bias=True)
        self.norm2 = BatchNormGELU(width)
        self.conv2 = create_conv2d(width, width, 3, padding="same", bias=True)
        self.norm3 = BatchNormGELU(width)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.dwt_l2(x))
        x = self.norm2(self.conv1(x))
        return self.norm3(self.conv2(x))


class MBConv(nn.Module):
    """Pre-norm inverted bottleneck with squeeze-excite, (B, dim, H, W) -> (B, dim_out, H/stride, W/stride)."""

    def __init__(self, dim: int, dim_out: int, stride: int, drop_path: float, style: BlockStyle) -> None:
        super().__init__()
        mid = 4 * dim_out
        act = "gelu_tanh" if style.gelu == "tanh" else "gelu"
        norm_act = partial(BatchNormAct2d, eps=style.bn_eps, act_layer=act)
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.shortcut.add_module("pool", create_pool2d("avg", 2, stride=2, padding="same"))
        if dim != dim_out:
            self.shortcut.add_module("expand", nn.Conv2d(dim, dim_out, 1))
        self.pre_norm = norm_act(dim, apply_act=False)
        self.conv1_1x1 = create_conv2d(dim, mid, 1, bias=False)
        self.norm1 = norm_act(mid)
        self.conv2_kxk = create_conv2d(mid, mid, 3, stride=stride, padding="same", groups=mid, bias=False)
        self.norm2 = norm_act(mid)
        self.se = SqueezeExcite(mid, rd_channels=dim_out // 4, act_layer=nn.SiLU)
        self.conv3_1x1 = create_conv2d(mid, dim_out, 1, bias=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(self.conv1_1x1(self.pre_norm(x)))
        y = self.se(self.norm2(self.conv2_kxk(y)))
        return self.drop_path(self.conv3_1x1(y)) + self.shortcut(x)


class RelPosBias(nn.Module):
    """Learned bias by offset: out[h, q, k] = table[h, row(k) - row(q) + P - 1, col(k) - col(q) + P - 1]."""

    index: torch.Tensor

    def __init__(self, window: int, num_heads: int) -> None:
        super().__init__()
        span = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_heads, span, span))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        rows, cols = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        flat = torch.stack([rows, cols]).flatten(1)
        offset = flat[:, None, :] - flat[:, :, None] + window - 1
        self.register_buffer("index", offset[0] * span + offset[1], persistent=False)

    def forward(self) -> torch.Tensor:
        return self.relative_position_bias_table.flatten(1)[:, self.index]


class PartitionedSelfAttention(nn.Module):
    """Multi-head attention with relative bias inside each group of P*P tokens, (G, P*P, C) -> (G, P*P, C).

    Local: softmax(d^-1/2 Q K^T + bias) V. Global, with the published change of roles: softmax(d^-1/2 K V^T + bias) Q.
    """

    def __init__(self, dim: int, head_dim: int, window: int, swap_roles: bool) -> None:
        super().__init__()
        self.num_heads = dim // head_dim
        self.scale = head_dim**-0.5
        self.swap_roles = swap_roles
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rel_pos = RelPosBias(window, self.num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        G, N, C = x.shape
        q, k, v = self.qkv(x).reshape(G, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.swap_roles:
            q, k, v = k, v, q
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = (attn + self.rel_pos()).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(G, N, C))


class PartitionAttention(nn.Module):
    """Window (`grid=False`) or dilated-grid attention and an MLP, both residual, (B, H, W, C) -> same."""

    def __init__(self, dim: int, head_dim: int, window: int, grid: bool, drop_path: float, style: BlockStyle) -> None:
        super().__init__()
        self.window, self.grid = window, grid
        self.norm1 = nn.LayerNorm(dim, eps=style.ln_eps)
        self.attn = PartitionedSelfAttention(dim, head_dim, window, swap_roles=grid)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=style.ln_eps)
        self.mlp = Mlp(dim, 4 * dim, act_layer=partial(nn.GELU, approximate=style.gelu))
        self.drop_path2 = DropPath(drop_path)

    def _partitioned_attn(self, x: torch.Tensor) -> torch.Tensor:
        B, H, W, C = x.shape
        P = self.window
        if H % P or W % P:
            raise ValueError(f"a {H}x{W} map does not divide into {P}x{P} windows; set img_size")
        if self.grid:  # tokens of one group lie H/P rows and W/P columns apart
            groups = x.view(B, P, H // P, P, W // P, C).permute(0, 2, 4, 1, 3, 5).contiguous()
        else:
            groups = x.view(B, H // P, P, W // P, P, C).permute(0, 1, 3, 2, 4, 5).contiguous()
        groups = self.attn(groups.view(-1, P * P, C)).view(B, H // P, W // P, P, P, C)
        order = (0, 3, 1, 4, 2, 5) if self.grid else (0, 1, 3, 2, 4, 5)
        return groups.permute(order).contiguous().view(B, H, W, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self._partitioned_attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ConvPosEnc(nn.Module):
    """Depthwise 3x3 positional encoding added to the tokens, (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        B, N, C = x.shape
        feat = x.transpose(1, 2).view(B, C, *size)
        return x + self.proj(feat).flatten(2).transpose(1, 2)


class ChannelSelfAttention(nn.Module):
    """Attention between channels, per head A = softmax(d^-1/2 K^T V) (d x d) and output A Q^T, (B, N, C) -> same."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attn = ((k * self.scale).transpose(-2, -1) @ v).softmax(dim=-1)
        x = (attn @ q.transpose(-2, -1)).transpose(-2, -1)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class InterAttention(nn.Module):
    """Inter-subband part: two positional encodings, channel attention and an MLP, (B, N, C) -> same."""

    def __init__(self, dim: int, num_heads: int, drop_path: float, style: BlockStyle) -> None:
        super().__init__()
        self.cpe = nn.ModuleList([ConvPosEnc(dim), ConvPosEnc(dim)])
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ChannelSelfAttention(dim, num_heads)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, style.inter_mlp_ratio * dim, act_layer=nn.GELU)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = self.cpe[0](x, size)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = self.cpe[1](x, size)
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Block(nn.Module):
    """MBConv, window, channel and grid attention, (B, dim, H, W) -> (B, dim_out, H/stride, W/stride)."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        stride: int,
        inter_heads: int,
        head_dim: int,
        window: int,
        drop_path: float,
        style: BlockStyle = CLASSIFIER,
    ) -> None:
        super().__init__()
        partition = partial(PartitionAttention, dim_out, head_dim, window, drop_path=drop_path, style=style)
        self.conv = MBConv(dim, dim_out, stride, drop_path, style)
        self.attn_local = partition(grid=False)
        self.attn_inter = InterAttention(dim_out, inter_heads, drop_path, style)
        self.attn_global = partition(grid=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        B, C, H, W = x.shape
        x = self.attn_local(x.permute(0, 2, 3, 1))
        x = self.attn_inter(x.reshape(B, H * W, C), (H, W))
        x = self.attn_global(x.view(B, H, W, C))
        return x.permute(0, 3, 1, 2)


class Head(nn.Module):
    """Global average pool, LayerNorm, hidden layer with tanh, classifier, (B, dim, H, W) -> (B, num_classes)."""

    def __init__(self, dim: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pre_logits = nn.Sequential(OrderedDict(fc=nn.Linear(dim, hidden), act=nn.Tanh()))
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pre_logits(self.norm(x.mean(dim=(2, 3)))))


class BaselineWSFViT(nn.Module):
    """Published WSF-ViT, (B, 3, H, W) -> (B, num_classes), for H and W that are multiples of 32 * window."""

    def __init__(self, cfg: BaselineCfg, num_classes: int = 1000, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        window = cfg.img_size // 32
        rates = iter(drop_path_rate * i / max(sum(cfg.depths) - 1, 1) for i in range(sum(cfg.depths)))
        self.stem = Stem(cfg.stem_width)
        self.stages = nn.Sequential()
        dim = cfg.stem_width
        for dim_out, depth, heads in zip(cfg.dims, cfg.depths, cfg.inter_heads, strict=True):
            blocks = nn.Sequential()
            for stride in [2] + [1] * (depth - 1):
                blocks.append(Block(dim, dim_out, stride, heads, cfg.head_dim, window, next(rates)))
                dim = dim_out
            self.stages.append(nn.Sequential(OrderedDict(blocks=blocks)))
        self.head = Head(dim, cfg.hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(self.stem(x)))


def create_baseline(
    name: str, img_size: int | None = None, num_classes: int = 1000, drop_path_rate: float = 0.0
) -> BaselineWSFViT:
    """Build the baseline of a published name; `img_size` (a multiple of 32) also sets the window."""
    cfg = BASELINE_CFGS.get(name)
    if cfg is None:
        raise ValueError(f"no baseline for {name!r}; there is one for {', '.join(BASELINE_CFGS)}")
    if img_size is not None:
        cfg = replace(cfg, img_size=img_size)
    if cfg.img_size % 32:
        raise ValueError(f"img_size must be a multiple of 32, got {img_size}")
    return BaselineWSFViT(cfg, num_classes, drop_path_rate)
