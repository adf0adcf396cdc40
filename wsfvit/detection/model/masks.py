"""Conversion of masks between image and box grid: targets of the mask heads, pasting of predicted masks.

Coordinates of boxes and masks are continuous: pixel i reaches from i to i + 1.
"""

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, roi_align

from wsfvit.detection.model.heads import MASK_SIDE

# Elements of the float32 masks that are pasted at a time (256 MiB).
PASTE_ELEMENTS = 2**26


def build_mask_targets(masks: Tensor, boxes: Tensor, objects: Tensor) -> Tensor:
    """Targets of the mask head: each object's mask averaged on a 28 x 28 grid over the box, thresholded at one half.

    Args:
        masks: Masks of the image's objects, uint8 or bool (G, H, W).
        boxes: Boxes in the image, (P, 4).
        objects: Index of each box's object, int64 (P,).

    Returns:
        Zeros and ones, float32 (P, 28, 28).
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

    torchvision's pasting is not used: it rounds the boxes to integers.

    Args:
        probs: Probabilities in the boxes, (M, S, S).
        boxes: Boxes in pixels of the image, (M, 4).
        size: Height and width of the image.
        threshold: A pixel belongs to the object at or above this probability.

    Returns:
        bool (M, height, width).
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
