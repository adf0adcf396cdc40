"""RoI heads: one stage is Mask R-CNN, several are Cascade Mask R-CNN.

He et al., arXiv 1703.06870; Cai and Vasconcelos, arXiv 1906.09756. Each stage pools the boxes of the one before, scores
and moves them, and has its own mask head. At inference class scores come from the mean of the stages' logits, boxes
from the last stage, and masks from the mean of the stages' probabilities.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from wsfvit.detection.model.boxes import (
    SampledRoIs,
    Sizes,
    Targets,
    decode_boxes,
    encode_boxes,
    sample_rois,
    split_images,
    suppress,
)
from wsfvit.detection.model.config import DetectorConfig, StageConfig
from wsfvit.detection.model.heads import BOX_POOL, MASK_POOL, BoxHead, MaskHead, build_mask_targets, pool_rois

GIOU_EPS = 1e-6


class Detections(NamedTuple):
    """Detections in one image, best first."""

    boxes: Tensor  # float32 (M, 4), x1, y1, x2, y2 in pixels of the transformed image
    scores: Tensor  # float32 (M,)
    labels: Tensor  # int64 (M,)
    mask_probs: Tensor  # float32 (M, 28, 28): probability in each cell of the box


class CascadeRoIHeads(nn.Module):
    """Box and mask heads of all stages; ``strides`` are those of the levels that RoIs are pooled from, in pixels."""

    def __init__(self, config: DetectorConfig, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.strides = strides
        self.box_heads = nn.ModuleList(
            BoxHead(config.box_head, config.fpn_width, config.fc_width, config.num_classes) for _ in config.stages
        )
        self.mask_heads = nn.ModuleList(MaskHead(config.fpn_width, config.num_classes) for _ in config.stages)

    def pool_boxes(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Input of a box head, from the boxes (N, 4) of each image: (N of all images, C, 7, 7)."""
        return pool_rois(features, self.strides, boxes, BOX_POOL)

    def pool_masks(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Input of a mask head, likewise: (N of all images, C, 14, 14)."""
        return pool_rois(features, self.strides, boxes, MASK_POOL)

    def compute_losses(
        self, features: list[Tensor], proposals: list[Tensor], sizes: Sizes, targets: Targets
    ) -> dict[str, Tensor]:
        """Samples RoIs and computes the losses of every stage.

        Args:
            features: Maps of the levels, float32 (B, C, H / stride, W / stride).
            proposals: Boxes (N, 4) of each image.
            sizes: Height and width of each image without its padding.
            targets: ``boxes``, ``labels`` and ``masks`` of each image.

        Returns:
            ``s{stage}_loss_cls``, ``_box`` and ``_mask``: scalars, weighted.
        """
        config = self.config
        losses: dict[str, Tensor] = {}
        for index, stage in enumerate(config.stages):
            each = zip(proposals, targets, strict=True)
            rois = [sample_rois(boxes, target, config, stage) for boxes, target in each]
            logits, offsets = self.box_heads[index](self.pool_boxes(features, [x.boxes for x in rois]))
            cls_loss, box_loss = self._box_losses(stage, logits, offsets, rois, targets)
            mask_loss = self._mask_loss(index, features, rois, targets) * config.mask_loss_weight
            for name, loss in (("cls", cls_loss), ("box", box_loss), ("mask", mask_loss)):
                losses[f"s{index}_loss_{name}"] = loss * stage.loss_weight
            if index + 1 < len(config.stages):
                boxes, labels = [x.boxes for x in rois], torch.cat([x.labels for x in rois])
                refined = self.refine(stage, boxes, logits, offsets, sizes, labels)
                # The objects' own boxes are added again when the next stage samples.
                proposals = [boxes[~x.is_object] for boxes, x in zip(refined, rois, strict=True)]
        return losses

    def _box_losses(
        self, stage: StageConfig, logits: Tensor, offsets: Tensor, rois: list[SampledRoIs], targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy over all RoIs and box loss over the objects among them, both over the number of all RoIs."""
        labels = torch.cat([x.labels for x in rois])
        positives = (labels < self.config.num_classes).nonzero()[:, 0]
        own_offsets = offsets[positives, labels[positives]]
        boxes = torch.cat([x.boxes for x in rois])[positives]
        objects = torch.cat([target["boxes"].float()[x.objects] for x, target in zip(rois, targets, strict=True)])
        if self.config.box_loss == "giou":
            moved = decode_boxes(own_offsets, boxes, stage.box_stds)
            box_loss = generalized_box_iou_loss(moved, objects, reduction="sum", eps=GIOU_EPS)
        else:
            aims = encode_boxes(objects, boxes, stage.box_stds)
            box_loss = F.l1_loss(own_offsets, aims, reduction="sum")
        number = max(1, len(labels))
        cls_loss = F.cross_entropy(logits, labels, reduction="sum")
        return cls_loss / number, box_loss * (self.config.box_loss_weight / number)

    def _mask_loss(self, index: int, features: list[Tensor], rois: list[SampledRoIs], targets: Targets) -> Tensor:
        """Binary cross-entropy of the object's class, the mean over all cells of the RoIs that are objects.

        Without any object the head runs on zero RoIs, so that its parameters get a gradient of zero.
        """
        boxes = [x.boxes[: len(x.objects)] for x in rois]
        labels = torch.cat([x.labels[: len(x.objects)] for x in rois])
        logits = self.mask_heads[index](self.pool_masks(features, boxes), labels)
        with torch.no_grad():
            each = zip(boxes, rois, targets, strict=True)
            aims = torch.cat([build_mask_targets(target["masks"], own, x.objects) for own, x, target in each])
        return F.binary_cross_entropy_with_logits(logits, aims, reduction="sum") / max(1, aims.numel())

    @torch.no_grad()
    def refine(
        self,
        stage: StageConfig,
        boxes: list[Tensor],
        logits: Tensor,
        offsets: Tensor,
        sizes: Sizes,
        labels: Tensor | None = None,
    ) -> list[Tensor]:
        """Boxes (N, 4) of each image after a stage, clipped to the image.

        A box moves by the offsets of its class in ``labels``, (N of all images,); background boxes, and all without
        labels, move by those of the class with the highest score.
        """
        best = logits[:, :-1].argmax(dim=1)
        classes = best if labels is None else torch.where(labels == self.config.num_classes, best, labels)
        own_offsets = offsets[torch.arange(classes.shape[0], device=classes.device), classes]
        moved = decode_boxes(own_offsets, torch.cat(boxes), stage.box_stds)
        return self._split_and_clip(moved, boxes, sizes)

    @staticmethod
    def _split_and_clip(moved: Tensor, boxes: list[Tensor], sizes: Sizes) -> list[Tensor]:
        return [clip_boxes_to_image(part, size) for part, size in zip(split_images(moved, boxes), sizes, strict=True)]

    def detect(self, features: list[Tensor], proposals: list[Tensor], sizes: Sizes) -> list[Detections]:
        """Detections of each image; arguments as in ``compute_losses``."""
        boxes, stages = proposals, self.config.stages
        all_logits = []
        for index, stage in enumerate(stages):
            logits, offsets = self.box_heads[index](self.pool_boxes(features, boxes))
            all_logits.append(logits)
            if index + 1 < len(stages):
                boxes = self.refine(stage, boxes, logits, offsets, sizes)
        class_boxes = decode_boxes(offsets, torch.cat(boxes)[:, None], stages[-1].box_stds)
        scores = split_images(torch.stack(all_logits).mean(dim=0).softmax(dim=1)[:, :-1], boxes)
        images = zip(self._split_and_clip(class_boxes, boxes, sizes), scores, strict=True)
        found = [self._select(image_boxes, image_scores) for image_boxes, image_scores in images]
        found_boxes = [x[0] for x in found]
        pooled, labels = self.pool_masks(features, found_boxes), torch.cat([x[2] for x in found])
        mask_probs = torch.stack([head(pooled, labels).sigmoid() for head in self.mask_heads]).mean(dim=0)
        parts = zip(found, split_images(mask_probs, found_boxes), strict=True)
        return [Detections(*image, part) for image, part in parts]

    def _select(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Selects from one image's boxes (N, K, 4) and scores (N, K): boxes (M, 4), scores and labels (M,)."""
        config = self.config
        rows, labels = (scores > config.score_threshold).nonzero(as_tuple=True)
        boxes, scores = boxes[rows, labels], scores[rows, labels]
        keep = suppress(boxes, scores, labels, config.nms_threshold)[: config.max_detections]
        return boxes[keep], scores[keep], labels[keep]
