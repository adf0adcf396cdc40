"""The detectors that benchmarks/detection.py times, ours and torchvision's, each ready to run on the same pictures."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
from torchvision.ops import masks_to_boxes

from wsfvit.data.seeding import derive_seed
from wsfvit.detection.data.batch import PaddingCollate, Sample
from wsfvit.detection.data.transforms import Normalize
from wsfvit.detection.model.config import KINDS, mask_rcnn_config
from wsfvit.detection.model.detector import build_detector, to_original
from wsfvit.detection.shapes import draw_shapes
from wsfvit.utils.precision import memory_format

PEER = "torchvision"


@dataclass(frozen=True)
class Candidate:
    """A detector with its data.

    Attributes:
        model: The detector.
        losses: Losses by name, of the pictures and their objects.
        detect: Masks (M, H, W) of each picture.
        first_category: Bias of the first category's score, one of each classifier.
    """

    model: nn.Module
    losses: Callable[[], dict[str, Tensor]]
    detect: Callable[[], list[Tensor]]
    first_category: list[Tensor]


def build_samples(count: int, size: tuple[int, int], seed: int) -> list[Sample]:
    """Pictures of one to four shapes, normalised, with boxes, labels and masks."""
    samples = []
    for number in range(count):
        pixels, labels, drawn = draw_shapes(*size, derive_seed(seed, number))
        masks = torch.from_numpy(drawn).byte()
        target = {
            # The boxes' far sides are the last pixels; a pixel is one wide.
            "boxes": masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]),
            "labels": torch.tensor(labels),
            "masks": masks,
        }
        samples.append(Sample(Normalize()(torch.from_numpy(pixels).permute(2, 0, 1)), target, size, number))
    return samples


def build_ours(name: str, samples: list[Sample], args: argparse.Namespace, device: torch.device) -> Candidate:
    """A detector of this package, with the pictures padded to what its backbone takes.

    Raises:
        UserError: there is no such backbone, or it or the detector does not take its settings.
    """
    kind, _, backbone_name = name.partition(":")
    options = {"frozen_stats": False, **args.model_kwargs}
    config = KINDS[kind](backbone_name, args.num_classes, backbone_options=options, **args.detector_kwargs)
    model = build_detector(config)
    model.to(device, memory_format=memory_format(args))  # type: ignore[call-overload]
    backbone: Any = model.backbone
    batch = PaddingCollate(backbone.multiple)(samples).to(device)
    images = batch.images.to(memory_format=memory_format(args))

    def detect() -> list[Tensor]:
        found = model(images, batch.sizes)
        return [to_original(each, size, size)[1] for each, size in zip(found, batch.sizes, strict=True)]

    heads: Any = model.roi_heads.box_heads
    biases = [head.cls.bias[0] for head in heads]
    return Candidate(model, partial(model, images, batch.sizes, batch.targets), detect, biases)


def build_peer(samples: list[Sample], args: argparse.Namespace, device: torch.device) -> Candidate:
    """torchvision's Mask R-CNN without weights, at the pictures' own size, with as many proposals and RoIs as ours."""
    config = mask_rcnn_config(num_classes=args.num_classes, **args.detector_kwargs)
    model = maskrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=args.num_classes + 1,
        min_size=min(args.size),
        max_size=max(args.size),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_pre_nms_top_n_train=config.candidates_train,
        rpn_pre_nms_top_n_test=config.candidates_test,
        rpn_post_nms_top_n_train=config.proposals_train,
        rpn_post_nms_top_n_test=config.proposals_test,
        rpn_batch_size_per_image=config.rpn_samples,
        box_batch_size_per_image=config.roi_samples,
        box_score_thresh=config.score_threshold,
        box_detections_per_img=config.max_detections,
    ).to(device, memory_format=memory_format(args))
    batch = PaddingCollate()(samples).to(device)
    images = list(batch.images)
    # Its class 0 is the background.
    targets = [{**target, "labels": target["labels"] + 1} for target in batch.targets]

    def detect() -> list[Tensor]:
        return [found["masks"][:, 0] >= 0.5 for found in model(images)]

    bias = model.roi_heads.box_predictor.cls_score.bias[1]
    return Candidate(model, partial(model, images, targets), detect, [bias])


def build_candidates(args: argparse.Namespace, device: torch.device) -> dict[str, Candidate]:
    """The detectors that ``args`` names, on ``device``, with the same pictures."""
    samples = build_samples(args.batch_size, tuple(args.size), args.seed)
    candidates = {}
    for name in args.detectors:
        torch.manual_seed(args.seed)
        build = build_peer if name == PEER else partial(build_ours, name)
        candidates[name] = build(samples, args, device)
    return candidates
