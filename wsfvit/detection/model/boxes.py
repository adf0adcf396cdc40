"""Boxes: offsets from other boxes in float32, suppression, assignment to objects and sampling.

A box is x1, y1, x2, y2 in pixels, without the historic "+ 1". The offsets are those of Girshick et al., arXiv
1311.2524, appendix C. torchvision's BoxCoder is not used: it does not limit how small a box can become.

Matches are integers: n + 1 for object n, 0 for background, -1 for ignored.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

from wsfvit.detection.model.config import DetectorConfig, StageConfig

BACKGROUND = 0
IGNORED = -1
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
    """Non-maximum suppression of boxes (N, 4) without negative coordinates and with scores (N,) within groups (N,).

    Returns the indices of the boxes that are kept, best score first: int64 (M,).
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


def match_boxes(
    boxes: Tensor, objects: Tensor, positive: float, negative: float, low_quality: float | None = None
) -> Tensor:
    """Matches each box to the object that it overlaps most, or to the background: int64 (N,).

    Args:
        boxes: Anchors or proposals, (N, 4).
        objects: Boxes of the image's objects, (G, 4); G may be 0.
        positive: Lowest IoU at which a box is matched to its best object.
        negative: A box is background below this IoU; between the two it is ignored.
        low_quality: Lowest IoU at which an object also gets the boxes that overlap it most, all ties, even those that
            overlap another object more; of several such objects the last gets a box. None: no such rule.
    """
    matches = torch.full((len(boxes),), BACKGROUND, dtype=torch.int64, device=boxes.device)
    if not len(boxes) or not len(objects):
        return matches
    iou = box_iou(objects, boxes)
    best_iou, best_object = iou.max(dim=0)
    matches[best_iou >= negative] = IGNORED
    matches = torch.where(best_iou >= positive, best_object + 1, matches)
    if low_quality is not None:
        object_best = iou.max(dim=1, keepdim=True).values
        ties = (iou == object_best) & (object_best >= low_quality)
        tied_object, tied_box = ties.nonzero(as_tuple=True)
        taken = torch.zeros_like(matches).scatter_reduce(0, tied_box, tied_object + 1, "amax")
        matches = torch.where(taken > 0, taken, matches)
    return matches


def sample_matches(matches: Tensor, number: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Samples at most ``number`` boxes, of which at most ``positive_fraction`` are objects; background fills the rest.

    Draws from torch's global generator of the matches' device; returns the indices of both, int64.
    """
    positives = _sample((matches > BACKGROUND).nonzero()[:, 0], int(number * positive_fraction))
    negatives = _sample((matches == BACKGROUND).nonzero()[:, 0], number - len(positives))
    return positives, negatives


def _sample(indices: Tensor, number: int) -> Tensor:
    if len(indices) <= number:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]


class SampledRoIs(NamedTuple):
    """Training samples of a stage in one image: first the objects, then the background."""

    boxes: Tensor  # float32 (N, 4)
    labels: Tensor  # int64 (N,): the class, or the number of classes for background
    objects: Tensor  # int64 (P,): index of the object that each of the first P RoIs is matched to
    is_object: Tensor  # bool (N,): whether the RoI is an object's own box, added to the proposals


def sample_rois(
    proposals: Tensor, target: dict[str, Tensor], config: DetectorConfig, stage: StageConfig
) -> SampledRoIs:
    """Adds the objects' own boxes to an image's proposals, (N, 4), and samples ``roi_samples`` of all of them.

    A proposal with an IoU of at least the stage's threshold is an object. With ``low_quality_rois`` each object also
    gets its best proposals (see ``match_boxes``), at the same threshold.
    """
    objects, iou = target["boxes"].float(), stage.iou_threshold
    matches = match_boxes(proposals, objects, iou, iou, iou if config.low_quality_rois else None)
    own = torch.arange(1, len(objects) + 1, device=matches.device)
    matches = torch.cat([own, matches])
    positives, negatives = sample_matches(matches, config.roi_samples, config.roi_positive_fraction)
    chosen = torch.cat([positives, negatives])
    matched = matches[positives] - 1
    labels = torch.cat([target["labels"][matched], torch.full_like(negatives, config.num_classes)])
    return SampledRoIs(torch.cat([objects, proposals])[chosen], labels, matched, chosen < len(objects))
