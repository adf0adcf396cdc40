"""Boxes as offsets from other boxes, in float32.

A box is x1, y1, x2, y2 in pixels, without the historic "+ 1". The offsets are those of Girshick et al., arXiv
1311.2524, appendix C. torchvision's BoxCoder is not used: it does not limit how small a box can become.
"""

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

Sizes = list[tuple[int, int]]  # height and width of each image of a batch, without padding
Targets = list[dict[str, Tensor]]  # boxes, labels and masks of each image's objects, see Detector

# exp() of a larger size offset would scale a box by more than 1000 / 16.
MAX_SIZE_OFFSET = math.log(1000 / 16)


def encode_boxes(boxes: Tensor, references: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
    """Offsets (dx, dy, dw, dh) of ``boxes`` from ``references``, both (..., 4), each divided by its ``stds``."""
    boxes, references = boxes.float(), references.float()
    sizes, reference_sizes = boxes[..., 2:] - boxes[..., :2], references[..., 2:] - references[..., :2]
    centers, reference_centers = boxes[..., :2] + 0.5 * sizes, references[..., :2] + 0.5 * reference_sizes
    offsets = torch.cat([(centers - reference_centers) / reference_sizes, (sizes / reference_sizes).log()], dim=-1)
    return offsets / offsets.new_tensor(stds)


def decode_boxes(offsets: Tensor, references: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
    """Boxes at ``offsets`` from ``references``, (..., 4) each, broadcast: inverts ``encode_boxes``.

    The offsets of width and height are limited on both sides, to a factor of 1000 / 16. Boxes are not clipped.
    """
    offsets, references = offsets.float(), references.float()
    offsets = offsets * offsets.new_tensor(stds)
    reference_sizes = references[..., 2:] - references[..., :2]
    centers = references[..., :2] + 0.5 * reference_sizes + offsets[..., :2] * reference_sizes
    half_sizes = 0.5 * reference_sizes * offsets[..., 2:].clamp(-MAX_SIZE_OFFSET, MAX_SIZE_OFFSET).exp()
    return torch.cat([centers - half_sizes, centers + half_sizes], dim=-1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression of boxes (N, 4) without negative coordinates, within each group (N,).

    Returns:
        Indices of the boxes that are kept, best score (N,) first: int64 (M,).
    """
    if not torch.compiler.is_exporting():
        return batched_nms(boxes, scores, groups, threshold)
    # The form that batched_nms takes for few boxes; it depends on their number, which a graph cannot. torchvision
    # tells tracers that at least two boxes are kept, so two are added that overlap with none and come last.
    spare = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    limit = torch.cat([boxes, spare]).max() + 1
    shifted = torch.cat([boxes + (groups.to(boxes) * limit)[:, None], spare])
    return nms(shifted, torch.cat([scores, scores.new_full((2,), -1)]), threshold)[:-2]


def split_images(values: Tensor, boxes: list[Tensor]) -> list[Tensor]:
    """Splits ``values`` (N of all images, ...) by image, as many as each has ``boxes`` (N, 4)."""
    if len(boxes) == 1:  # in an exported graph their number is unknown
        return [values]
    return list(values.split([x.shape[0] for x in boxes]))
