"""Region proposals (Ren et al., arXiv 1506.01497) on a feature pyramid (Lin et al., arXiv 1612.03144).

torchvision's generator of anchors is not used: it rounds them to integers and derives a level's stride from the image
size, which shifts the anchors of odd-sized maps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from wsfvit.detection.model.boxes import (
    IGNORED,
    Sizes,
    Targets,
    decode_boxes,
    encode_boxes,
    match_boxes,
    sample_matches,
    suppress,
)
from wsfvit.detection.model.config import DetectorConfig

ASPECT_RATIOS = (0.5, 1.0, 2.0)
# Side of a level's square anchor, in strides.
ANCHOR_SCALE = 8.0
STDS = (1.0, 1.0, 1.0, 1.0)
# Proposals with a shorter side, in pixels, are dropped: those outside the image have been clipped to nothing.
MIN_SIDE = 1e-3


class RegionProposalNetwork(nn.Module):
    """One convolutional head for all levels of the pyramid, with their ``strides`` in pixels; proposals and losses."""

    def __init__(self, config: DetectorConfig, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.strides = strides
        self.head = RPNHead(config.fpn_width, len(ASPECT_RATIOS))

    def forward(
        self, features: list[Tensor], sizes: Sizes, targets: Targets | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals of each image, and with targets the losses ``loss_rpn_cls`` and ``loss_rpn_box``.

        Args:
            features: Maps of the levels, (B, C, H / stride, W / stride).
            sizes: Height and width of each image without its padding.
            targets: Each image's ``boxes``.

        Returns:
            Boxes (N, 4) of each image, best first, without gradient; scalars, empty without targets.
        """
        logits, offsets, anchors = self.predict(features)
        with torch.no_grad():
            proposals = self.propose(logits, offsets, anchors, sizes, training=targets is not None)
        losses = {} if targets is None else self.compute_losses(logits, offsets, anchors, sizes, targets)
        return [boxes for boxes, _ in proposals], losses

    def predict(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits (B, N), offsets (B, N, 4) and anchors (N, 4) of each level, float32, in the anchors' order."""
        logits, offsets = self.head(features)
        logits = [x.permute(0, 2, 3, 1).flatten(1).float() for x in logits]
        offsets = [x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)).float() for x in offsets]
        levels = zip(features, self.strides, strict=True)
        return logits, offsets, [build_anchors(x.shape[2], x.shape[3], stride, x.device) for x, stride in levels]

    def propose(
        self, logits: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], sizes: Sizes, training: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Boxes (N, 4) and scores (N,) of each image's proposals, best first.

        The best anchors of each level are decoded, clipped to the image, and suppressed within their level.
        """
        config = self.config
        candidates = config.candidates_train if training else config.candidates_test
        number = config.proposals_train if training else config.proposals_test
        boxes, scores, levels = [], [], []
        for level in range(len(logits)):
            best, index = logits[level].topk(min(candidates, logits[level].shape[1]), dim=1)
            chosen = offsets[level].gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode_boxes(chosen, anchors[level][index], STDS))
            scores.append(best.sigmoid())
            levels.append(torch.full_like(index[0], level))
        level_of = torch.cat(levels)
        proposals = []
        for image_boxes, image_scores, size in zip(torch.cat(boxes, 1), torch.cat(scores, 1), sizes, strict=True):
            image_boxes = clip_boxes_to_image(image_boxes, size)
            wide = remove_small_boxes(image_boxes, MIN_SIDE)
            image_boxes, image_scores = image_boxes[wide], image_scores[wide]
            keep = suppress(image_boxes, image_scores, level_of[wide], config.rpn_nms_threshold)[:number]
            if torch.compiler.is_exporting():
                # Box heads cannot be traced without boxes; at least one proposal is always wide enough.
                torch._check(keep.shape[0] > 0)
            proposals.append((image_boxes[keep], image_scores[keep]))
        return proposals

    def match_anchors(self, anchors: Tensor, objects: Tensor, size: tuple[int, int]) -> Tensor:
        """Match of each anchor, int64 (N,), see boxes.py; anchors beyond the border are ignored."""
        config = self.config
        positive, negative = config.rpn_positive_iou, config.rpn_negative_iou
        if config.rpn_border is None:
            return match_boxes(anchors, objects, positive, negative, low_quality=negative)
        inside = find_inside(anchors, size, config.rpn_border)
        matches = torch.full_like(inside, IGNORED, dtype=torch.int64)
        matches[inside] = match_boxes(anchors[inside], objects, positive, negative, low_quality=negative)
        return matches

    def compute_losses(
        self, logits: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], sizes: Sizes, targets: Targets
    ) -> dict[str, Tensor]:
        """Losses ``loss_rpn_cls`` and ``loss_rpn_box``: means over the sampled anchors of the batch."""
        config = self.config
        all_logits, all_offsets, all_anchors = torch.cat(logits, 1), torch.cat(offsets, 1), torch.cat(anchors)
        chosen_logits, labels, chosen_offsets, aims = [], [], [], []
        for image, (target, size) in enumerate(zip(targets, sizes, strict=True)):
            objects = target["boxes"].float()
            matches = self.match_anchors(all_anchors, objects, size)
            positives, negatives = sample_matches(matches, config.rpn_samples, config.rpn_positive_fraction)
            chosen_logits += [all_logits[image, positives], all_logits[image, negatives]]
            labels += [torch.ones_like(chosen_logits[-2]), torch.zeros_like(chosen_logits[-1])]
            chosen_offsets.append(all_offsets[image, positives])
            aims.append(encode_boxes(objects[matches[positives] - 1], all_anchors[positives], STDS))
        label = torch.cat(labels)
        number = max(1, len(label))
        cls_loss = F.binary_cross_entropy_with_logits(torch.cat(chosen_logits), label, reduction="sum")
        beta = 1 / 9 if config.rpn_box_loss == "smooth_l1" else 0.0
        box_loss = F.smooth_l1_loss(torch.cat(chosen_offsets), torch.cat(aims), reduction="sum", beta=beta)
        return {"loss_rpn_cls": cls_loss / number, "loss_rpn_box": box_loss / number}


def build_anchors(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Anchors of one level's map of ``height`` x ``width`` cells.

    One anchor of each aspect ratio (height / width), all of the same area, is centred on the upper left corner of each
    cell: (x, y) = (stride * column, stride * row). float32 (height * width * 3, 4): row by row, at each cell in the
    order of ``ASPECT_RATIOS``.
    """
    roots = torch.tensor(ASPECT_RATIOS, device=device).sqrt()
    half_sizes = 0.5 * ANCHOR_SCALE * stride * torch.stack([1 / roots, roots], dim=1)
    base = torch.cat([-half_sizes, half_sizes], dim=1)
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    y, x = torch.meshgrid(stride * rows, stride * columns, indexing="ij")
    centers = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (centers + base).reshape(-1, 4)


def find_inside(anchors: Tensor, size: tuple[int, int], border: float) -> Tensor:
    """Mask, bool (N,), of the anchors (N, 4) that leave an image of ``size`` (H, W) by at most ``border`` pixels."""
    height, width = size
    starts_inside = (anchors[:, :2] >= -border).all(dim=1)
    return starts_inside & (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border)
