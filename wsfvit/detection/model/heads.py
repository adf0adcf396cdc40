"""Box head and mask head of one stage, from torchvision's layers, RoI pooling, and masks between image and box grid.

Coordinates of boxes and masks are continuous: pixel i reaches from i to i + 1.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import clip_boxes_to_image, roi_align

# Elements of the float32 masks that are pasted at a time (256 MiB).
PASTE_ELEMENTS = 2**26
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

    Shape: maps of the levels, float32 (B, C, H / stride, W / stride), and boxes (N, 4) of each image -> float32 (N of
    all images, C, side, side).
    """
    flat = torch.cat(boxes)
    images = torch.cat([torch.full_like(x[:, :1], index) for index, x in enumerate(boxes)])
    rois = torch.cat([images, flat], dim=1)
    level_of = pyramid_levels(flat, len(features))
    levels = list(enumerate(zip(features, strides, strict=True)))
    pool = partial(roi_align, output_size=side, sampling_ratio=0, aligned=True)
    if torch.compiler.is_exporting():
        # A graph's shapes cannot depend on how many RoIs a level has. An empty RoI is pooled to zero, at no cost.
        parts = [
            pool(x, rois * (level_of == level)[:, None], spatial_scale=1 / stride) for level, (x, stride) in levels
        ]
        return torch.stack(parts).sum(dim=0)
    pooled = features[0].new_zeros(len(rois), features[0].shape[1], side, side)
    for level, (x, stride) in levels:
        chosen = (level_of == level).nonzero()[:, 0]
        pooled[chosen] = pool(x, rois[chosen], spatial_scale=1 / stride)
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


def build_mask_targets(masks: Tensor, boxes: Tensor, objects: Tensor) -> Tensor:
    """Targets of the mask head: each object's mask averaged on a 28 x 28 grid over the box, thresholded at one half.

    Shape: masks of an image's objects, uint8 or bool (G, H, W), boxes (P, 4) and the index of each box's object, int64
    (P,) -> zeros and ones, float32 (P, 28, 28).
    """
    if not len(boxes):
        return boxes.new_zeros(0, MASK_SIDE, MASK_SIDE)
    # Only the objects in use are converted to float32.
    used, rows = objects.unique(return_inverse=True)
    rois = torch.cat([rows[:, None].to(boxes), clip_boxes_to_image(boxes, masks.shape[1:])], dim=1)
    cells = roi_align(masks[used][:, None].float(), rois, MASK_SIDE, sampling_ratio=0, aligned=True)
    return (cells[:, 0] >= 0.5).float()


def paste_masks(probs: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Pastes masks into their boxes: bilinear interpolation in continuous coordinates, then a threshold.

    A pixel belongs to the object at or above the threshold. torchvision's pasting is not used: it rounds the boxes to
    integers.

    Shape: probabilities in the boxes (M, S, S), boxes (M, 4) in pixels of an image of ``size`` (height, width) -> bool
    (M, height, width).
    """
    pasted = torch.empty(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    step = max(1, PASTE_ELEMENTS // max(1, size[0] * size[1]))
    for start in range(0, len(boxes), step):
        part = slice(start, start + step)
        pasted[part] = interpolate_masks(probs[part], boxes[part], size) >= threshold
    return pasted


def interpolate_masks(probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (M, height, width) before the threshold of ``paste_masks``; zero beyond the outermost cells."""
    height, width = size
    side = probs.shape[-1]
    rows = _bilinear_weights(boxes[:, 1], boxes[:, 3], height, side)
    columns = _bilinear_weights(boxes[:, 0], boxes[:, 2], width, side)
    return rows @ probs.float() @ columns.transpose(1, 2)


def _bilinear_weights(starts: Tensor, ends: Tensor, pixels: int, cells: int) -> Tensor:
    """Weight of each of a box's ``cells`` in each of the image's ``pixels`` along one axis: (M, pixels, cells)."""
    centers = torch.arange(pixels, device=starts.device) + 0.5
    lengths = (ends - starts).clamp(min=1e-6)  # an empty box has no pixel
    places = (centers - starts[:, None]) / lengths[:, None] * cells - 0.5
    distances = places[..., None] - torch.arange(cells, device=starts.device)
    return (1 - distances.abs()).clamp(min=0)
