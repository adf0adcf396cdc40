"""Box head and mask head of one stage, from torchvision's layers, and RoI pooling."""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

BOX_POOL = 7
MASK_POOL = 14
# Side of a predicted mask: the pooled map, doubled by the transposed convolution.
MASK_SIDE = 2 * MASK_POOL
# RoIs of less than twice this side are pooled from the finest level, of twice that from the next, and so on.
FINEST_SIDE = 56


def pyramid_levels(boxes: Tensor, levels: int) -> Tensor:
    """Index of the level that each box (N, 4) is pooled from: int64 (N,) (Lin et al., arXiv 1612.03144, eq. 1)."""
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    return torch.log2(sides / FINEST_SIDE + 1e-6).floor().clamp(0, levels - 1).long()


def pool_rois(features: list[Tensor], strides: tuple[int, ...], boxes: list[Tensor], side: int) -> Tensor:
    """RoIAlign (He et al., arXiv 1703.06870), each box from the level of its size.

    torchvision's ``MultiScaleRoIAlign`` lacks the half-pixel shift (``aligned``) that this needs.

    Args:
        features: Maps of the levels, float32 (B, C, H / stride, W / stride).
        strides: Stride of each level in pixels.
        boxes: Boxes (N, 4) of each image.
        side: Height and width of the result.

    Returns:
        float32 (N of all images, C, side, side).
    """
    flat = torch.cat(boxes)
    images = torch.cat([torch.full_like(x[:, :1], index) for index, x in enumerate(boxes)])
    rois = torch.cat([images, flat], dim=1)
    levels = pyramid_levels(flat, len(features))
    if torch.compiler.is_exporting():
        # A graph's shapes cannot depend on how many RoIs a level has. An empty RoI is pooled to zero, at no cost.
        return torch.stack(
            [
                roi_align(feature, rois * (levels == level)[:, None], side, 1 / stride, sampling_ratio=0, aligned=True)
                for level, (feature, stride) in enumerate(zip(features, strides, strict=True))
            ]
        ).sum(dim=0)
    pooled = features[0].new_zeros(len(rois), features[0].shape[1], side, side)
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        chosen = (levels == level).nonzero()[:, 0]
        pooled[chosen] = roi_align(feature, rois[chosen], side, 1 / stride, sampling_ratio=0, aligned=True)
    return pooled


class BoxHead(nn.Module):
    """Class scores and class-specific box offsets of pooled RoIs.

    Shape: (N, C, 7, 7) -> logits (N, K + 1), the background last, and offsets (N, K, 4); both float32.
    """

    def __init__(self, kind: Literal["2fc", "4conv1fc"], in_chs: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = (
            TwoMLPHead(in_chs * BOX_POOL**2, width)
            if kind == "2fc"
            else FastRCNNConvFCHead((in_chs, BOX_POOL, BOX_POOL), [in_chs] * 4, [width], norm_layer=nn.BatchNorm2d)
        )
        for layer in self.hidden.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.cls = nn.Linear(width, num_classes + 1)
        self.reg = nn.Linear(width, num_classes * 4)
        for layer, std in ((self.cls, 0.01), (self.reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.hidden(x)
        return self.cls(x).float(), self.reg(x).float().unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Mask logits of each RoI's class, on a grid over the RoI.

    Shape: (N, C, 14, 14) and labels (N,) -> (N, 28, 28), float32.
    """

    def __init__(self, in_chs: int, num_classes: int) -> None:
        super().__init__()
        self.convs = MaskRCNNHeads(in_chs, [in_chs] * 4, dilation=1)
        self.predictor = MaskRCNNPredictor(in_chs, in_chs, num_classes)
        nn.init.zeros_(self.predictor.conv5_mask.bias)
        nn.init.zeros_(self.predictor.mask_fcn_logits.bias)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        masks = self.predictor(self.convs(x))
        return masks[torch.arange(labels.shape[0], device=labels.device), labels].float()
