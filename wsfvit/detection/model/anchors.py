"""Anchors of a feature pyramid (Ren et al., arXiv 1506.01497; Lin et al., arXiv 1612.03144).

torchvision's generator is not used: it rounds anchors to integers and derives a level's stride from the image size,
which shifts the anchors of odd-sized maps.
"""

import torch
from torch import Tensor

ASPECT_RATIOS = (0.5, 1.0, 2.0)
# Side of a level's square anchor, in strides.
ANCHOR_SCALE = 8.0


def build_anchors(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Anchors of one level's map of ``height`` x ``width`` cells.

    One anchor of each aspect ratio (height / width), all of the same area, is centred on the upper left corner of each
    cell: (x, y) = (stride * column, stride * row).

    Returns:
        float32 (height * width * 3, 4): row by row, at each cell in the order of ``ASPECT_RATIOS``.
    """
    roots = torch.tensor(ASPECT_RATIOS, device=device).sqrt()
    half_sizes = 0.5 * ANCHOR_SCALE * stride * torch.stack([1 / roots, roots], dim=1)
    base = torch.cat([-half_sizes, half_sizes], dim=1)
    y, x = torch.meshgrid(
        torch.arange(height, device=device) * stride, torch.arange(width, device=device) * stride, indexing="ij"
    )
    centers = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (centers + base).reshape(-1, 4)


def find_inside(anchors: Tensor, size: tuple[int, int], border: float) -> Tensor:
    """Mask, bool (N,), of the anchors (N, 4) that leave an image of ``size`` (H, W) by at most ``border`` pixels."""
    height, width = size
    starts_inside = (anchors[:, :2] >= -border).all(dim=1)
    return starts_inside & (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border)
