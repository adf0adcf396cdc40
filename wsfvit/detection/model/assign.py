"""Assignment of anchors and proposals to objects in training, and their sampling.

Matches are integers: n + 1 for object n, 0 for background, -1 for ignored.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND = 0
IGNORED = -1


def match_boxes(
    boxes: Tensor, objects: Tensor, positive: float, negative: float, low_quality: float | None = None
) -> Tensor:
    """Matches each box to the object that it overlaps most, or to the background.

    Args:
        boxes: Anchors or proposals, (N, 4).
        objects: Boxes of the image's objects, (G, 4); G may be 0.
        positive: Lowest IoU at which a box is matched to its best object.
        negative: A box is background below this IoU; between the two it is ignored.
        low_quality: Lowest IoU at which an object also gets the boxes that overlap it most, all ties, even those that
            overlap another object more; of several such objects the last gets a box. None: no such rule.

    Returns:
        int64 (N,).
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

    Draws from torch's global generator of the matches' device.

    Returns:
        Indices of the objects and of the background, int64.
    """
    positives = _sample((matches > BACKGROUND).nonzero()[:, 0], int(number * positive_fraction))
    negatives = _sample((matches == BACKGROUND).nonzero()[:, 0], number - len(positives))
    return positives, negatives


def _sample(indices: Tensor, number: int) -> Tensor:
    if len(indices) <= number:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]


class SampledRoIs(NamedTuple):
    """Training samples of a stage in one image: first the objects, then the background.

    Attributes:
        boxes: float32 (N, 4).
        labels: int64 (N,): the class, or the number of classes for background.
        objects: int64 (P,): index of the object that each of the first P RoIs is matched to.
        is_object: bool (N,): whether the RoI is an object's own box, added to the proposals.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    is_object: Tensor


def sample_rois(
    proposals: Tensor,
    target: dict[str, Tensor],
    num_classes: int,
    threshold: float,
    low_quality: bool,
    number: int,
    positive_fraction: float,
) -> SampledRoIs:
    """Adds the objects' own boxes to an image's proposals, (N, 4), and samples ``number`` of all of them.

    A proposal with an IoU of at least ``threshold`` is an object. With ``low_quality`` each object also gets its best
    proposals (see ``match_boxes``), at the same threshold.
    """
    objects = target["boxes"].float()
    matches = match_boxes(proposals, objects, threshold, threshold, threshold if low_quality else None)
    own = torch.arange(1, len(objects) + 1, device=matches.device)
    matches = torch.cat([own, matches])
    positives, negatives = sample_matches(matches, number, positive_fraction)
    chosen = torch.cat([positives, negatives])
    matched = matches[positives] - 1
    labels = torch.cat([target["labels"][matched], torch.full_like(negatives, num_classes)])
    return SampledRoIs(torch.cat([objects, proposals])[chosen], labels, matched, chosen < len(objects))
