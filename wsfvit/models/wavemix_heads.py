"""WaveMix for dense outputs at any size: semantic segmentation and single-image super-resolution, as published."""

from typing import Any

from torch import Tensor, nn

from ._family import override_cfg
from .wavemix import WaveMixTrunk
from .wavemix_blocks import WaveMixCfg

# Published defaults; super-resolution states no dropout and has 0 here, as segmentation.
SEGMENTATION_CFG = WaveMixCfg(embed_dim=256, depth=16, level=4, stem="strided", stem_stride=2, block_drop_rate=0.0)
SUPER_RESOLUTION_CFG = WaveMixCfg(embed_dim=144, depth=4, level=1, stem="strided", stem_stride=1, block_drop_rate=0.0)


class WaveMixSegmentation(WaveMixTrunk):
    """WaveMix with logits per pixel: two transposed convolutions invert the stem's two strides of 2.

    Args:
        num_classes: Classes.
        in_chans, drop_path_rate: See `WaveMixTrunk`.
        cfg: The variant; its stem must reduce by 4.
        **overrides: Fields of WaveMixCfg.

    Shape: images (B, in_chans, H, W) -> logits (B, num_classes, H, W).

    Raises:
        TypeError: Unknown keyword.
        ValueError: Invalid value of a field, or a stem that does not reduce by 4.
    """

    def __init__(
        self,
        num_classes: int = 20,
        in_chans: int = 3,
        cfg: WaveMixCfg = SEGMENTATION_CFG,
        drop_path_rate: float = 0.0,
        **overrides: Any,
    ) -> None:
        super().__init__(override_cfg(cfg, overrides), in_chans, drop_path_rate)
        _check_reduction("segmentation", self.cfg, 4)
        self.num_classes, d = num_classes, self.embed_dim
        self.expand = nn.Sequential(_double(d, d // 2), _double(d // 2, d // 4), nn.Conv2d(d // 4, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = x.shape
        return self.expand(self.forward_features(x))[:, :, :H, :W]


class WaveMixSuperResolution(WaveMixTrunk):
    """WaveMix for super-resolution by a factor of 2.

    Args:
        in_chans, drop_path_rate: See `WaveMixTrunk`.
        cfg: The variant; its stem must keep the resolution.
        **overrides: Fields of WaveMixCfg.

    Shape: images (B, in_chans, H, W) -> (B, in_chans, 2 * H, 2 * W).

    Raises:
        TypeError: Unknown keyword.
        ValueError: Invalid value of a field, or a stem that reduces.
    """

    def __init__(
        self, in_chans: int = 3, cfg: WaveMixCfg = SUPER_RESOLUTION_CFG, drop_path_rate: float = 0.0, **overrides: Any
    ) -> None:
        super().__init__(override_cfg(cfg, overrides), in_chans, drop_path_rate)
        _check_reduction("super-resolution", self.cfg, 1)
        d = self.embed_dim
        self.expand = nn.Sequential(_double(d, d // 2), nn.Conv2d(d // 2, in_chans, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.forward_features(x))


def _double(in_chs: int, out_chs: int) -> nn.ConvTranspose2d:
    """(B, in_chs, H, W) -> (B, out_chs, 2 * H, 2 * W)."""
    return nn.ConvTranspose2d(in_chs, out_chs, 4, stride=2, padding=1)


def _check_reduction(task: str, cfg: WaveMixCfg, reduction: int) -> None:
    if cfg.reduction != reduction:
        raise ValueError(f"WaveMix for {task} needs a stem that reduces by {reduction}, not by {cfg.reduction}")
