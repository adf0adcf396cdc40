"""Losses, refinement and detections of the RoI heads, by hand: heads that answer what the test tells them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from wsfvit.detection.model.config import (
    CASCADE_STAGES,
    DetectorConfig,
    StageConfig,
    cascade_mask_rcnn_config,
    mask_rcnn_config,
)
from wsfvit.detection.model.roi_heads import CascadeRoIHeads

SIZE = (64, 64)
STRIDES = (4, 8, 16, 32)
TINY = {"num_classes": 3, "fpn_width": 4, "fc_width": 4}
MAPS = [torch.ones(1, 4, 64 // s, 64 // s) for s in STRIDES]


class FixedBoxHead(nn.Module):
    """The same logits (4,) and offsets (3, 4) for every RoI."""

    def __init__(self, logits: list[float], offsets: Tensor | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.offsets = nn.Parameter(torch.zeros(3, 4) if offsets is None else offsets)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits.expand(len(x), 4), self.offsets.expand(len(x), 3, 4)


class FixedMaskHead(nn.Module):
    """A mask of one value, logits of (3,) by class."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.logits[labels][:, None, None].expand(len(x), 28, 28)


def build_heads(config: DetectorConfig, boxes: list[nn.Module], masks: list[nn.Module]) -> CascadeRoIHeads:
    heads = CascadeRoIHeads(config, STRIDES)
    heads.box_heads, heads.mask_heads = nn.ModuleList(boxes), nn.ModuleList(masks)
    return heads


def make_target(*objects: tuple[float, float, float, float], labels: list[int]) -> dict[str, Tensor]:
    boxes = torch.tensor(objects).reshape(-1, 4)
    return {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.ones(len(boxes), *SIZE, dtype=torch.uint8),
    }


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[label]


LOGITS = [0.5, -1.0, 2.0, 0.0]
PROPOSALS = torch.tensor([[10.0, 10, 30, 30], [40, 40, 60, 60], [0, 40, 20, 60]])


def test_mask_rcnn_losses_are_divided_by_all_rois_and_the_mask_loss_by_objects() -> None:
    """Two of four RoIs are the object of class 1, one as itself and one as a proposal off by half a width."""
    offsets = torch.zeros(3, 4)
    offsets[1] = torch.tensor([1.0, 0, 0, 0])
    heads = build_heads(mask_rcnn_config(**TINY), [FixedBoxHead(LOGITS, offsets)], [FixedMaskHead([9.0, 0.3, 9])])
    target = make_target((10, 10, 30, 26), labels=[1])
    losses = heads.compute_losses(MAPS, [PROPOSALS], [SIZE], [target])
    cls = (2 * cross_entropy(LOGITS, 1) + 2 * cross_entropy(LOGITS, 3)) / 4
    # Offsets of the proposal from its object: dy (18 - 20) / 20 / 0.1 and dh log(0.8) / 0.2.
    box = (1 + 1 + 1 + abs(math.log(0.8)) / 0.2) / 4
    assert losses["s0_loss_cls"].item() == pytest.approx(cls)
    assert losses["s0_loss_box"].item() == pytest.approx(box, rel=1e-5)
    assert losses["s0_loss_mask"].item() == pytest.approx(math.log1p(math.exp(-0.3)))


def test_mask_targets_come_from_each_image() -> None:
    """The mask of the second image's object is empty: the loss is the mean over both images' cells."""
    heads = build_heads(mask_rcnn_config(**TINY), [FixedBoxHead(LOGITS)], [FixedMaskHead([0.3, 9, 9])])
    targets = [make_target((10, 10, 30, 30), labels=[0]), make_target((10, 10, 30, 30), labels=[0])]
    targets[1]["masks"].zero_()
    maps = [x.expand(2, -1, -1, -1) for x in MAPS]
    losses = heads.compute_losses(maps, [PROPOSALS[1:], PROPOSALS[1:]], [SIZE] * 2, targets)
    mean = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(0.3))) / 2
    assert losses["s0_loss_mask"].item() == pytest.approx(mean)


def test_giou_loss_on_decoded_boxes() -> None:
    """Unmoved boxes: the object itself costs nothing, the proposal 1 - 0.8; weight 10, four RoIs, stage weight 0.5."""
    stage = StageConfig(0.5, 0.5)
    config = cascade_mask_rcnn_config(**TINY, stages=(stage,))
    heads = build_heads(config, [FixedBoxHead(LOGITS)], [FixedMaskHead([0.3, 0.3, 0.3])])
    losses = heads.compute_losses(MAPS, [PROPOSALS], [SIZE], [make_target((10, 10, 30, 26), labels=[1])])
    assert losses["s0_loss_box"].item() == pytest.approx(0.5 * 10 * 0.2 / 4, rel=1e-4)
    cls = (2 * cross_entropy(LOGITS, 1) + 2 * cross_entropy(LOGITS, 3)) / 4
    assert losses["s0_loss_cls"].item() == pytest.approx(0.5 * cls)
    assert losses["s0_loss_mask"].item() == pytest.approx(0.5 * math.log1p(math.exp(-0.3)))


@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_without_objects_losses_are_zero_and_every_head_has_a_gradient(box_loss: str) -> None:
    config = cascade_mask_rcnn_config(**TINY, box_loss=box_loss)
    heads = CascadeRoIHeads(config, STRIDES)
    losses = heads.compute_losses(MAPS, [PROPOSALS], [SIZE], [make_target(labels=[])])
    assert all(losses[f"s{i}_loss_{kind}"] == 0 for i in range(3) for kind in ("box", "mask"))
    assert all(losses[f"s{i}_loss_cls"] > 0 for i in range(3))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())


def shift(x: float) -> Tensor:
    """Offsets that move a box by ``x`` widths at the first stage's deviations, of one class."""
    return torch.tensor([x / 0.1, 0, 0, 0])


def test_refinement_takes_the_objects_class_or_the_best_scored() -> None:
    """Class 1 moves a box left, class 2 right; the best scored class is 2, though the background scores higher."""
    offsets = torch.stack([torch.zeros(4), shift(-0.5), shift(0.5)])
    heads = CascadeRoIHeads(cascade_mask_rcnn_config(**TINY), STRIDES)
    logits = torch.tensor([[0.0, 1, 2, 9]]).expand(3, 4)
    arguments = (CASCADE_STAGES[0], [PROPOSALS], logits, offsets.expand(3, 3, 4), [SIZE])
    (moved,) = heads.refine(*arguments, labels=torch.tensor([1, 3, 0]))
    # The background box would reach x = 70 and is clipped at 64.
    torch.testing.assert_close(moved, torch.tensor([[0.0, 10, 20, 30], [50, 40, 64, 60], [0, 40, 20, 60]]))
    (moved,) = heads.refine(*arguments)
    torch.testing.assert_close(moved, torch.tensor([[20.0, 10, 40, 30], [50, 40, 64, 60], [10, 40, 30, 60]]))


def test_cascade_stages_see_refined_boxes_and_the_objects_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object's own box joins every stage unmoved; its refined copy does not stay."""
    config = cascade_mask_rcnn_config(**TINY, stages=CASCADE_STAGES[:2])
    moving = FixedBoxHead([0.0, 0, 1, 0], torch.stack([shift(-0.1), shift(0), shift(0.25)]))
    heads = build_heads(config, [moving, moving], [FixedMaskHead([0.0] * 3)] * 2)
    seen = []
    pool_boxes = heads.pool_boxes
    monkeypatch.setattr(heads, "pool_boxes", lambda maps, boxes: seen.append(boxes[0]) or pool_boxes(maps, boxes))
    target = make_target((10, 10, 30, 28), labels=[0])
    heads.compute_losses(MAPS, [PROPOSALS], [SIZE], [target])
    first, second = seen
    assert first.tolist() == [*target["boxes"].tolist(), *PROPOSALS.tolist()]
    # Objects come first: the moved proposal, as class 0, is still one (IoU 0.74). Background moves as class 2.
    expected = [[10, 10, 30, 28], [8, 10, 28, 30], [45, 40, 64, 60], [5, 40, 25, 60]]
    torch.testing.assert_close(second, torch.tensor(expected, dtype=torch.float32))


def test_cascade_thresholds_rise_stage_by_stage() -> None:
    """An RoI of IoU 0.65 is an object for the first two stages and background for the third."""
    config = cascade_mask_rcnn_config(**TINY)
    heads = build_heads(config, [FixedBoxHead(LOGITS) for _ in range(3)], [FixedMaskHead([0.0] * 3)] * 3)
    proposal = torch.tensor([[10.0, 10, 30, 30]])
    losses = heads.compute_losses(MAPS, [proposal], [SIZE], [make_target((10, 10, 30, 23), labels=[1])])
    own, background = cross_entropy(LOGITS, 1), cross_entropy(LOGITS, 3)
    assert losses["s0_loss_cls"].item() == pytest.approx(own)
    assert losses["s1_loss_cls"].item() == pytest.approx(0.5 * own)
    assert losses["s2_loss_cls"].item() == pytest.approx(0.25 * (own + background) / 2)


def test_detections_average_logits_and_masks_and_take_the_last_boxes() -> None:
    """Boxes move by a tenth in the first stage and a fifth in the second, at each stage's own deviations."""
    stages = CASCADE_STAGES[:2]
    first = FixedBoxHead([0.0, 3, 0, 0], torch.stack([shift(9), shift(0.1), shift(9)]))
    second = FixedBoxHead([0.0, 1, 0, 2], torch.stack([shift(9), shift(0.4), shift(9)]))
    masks = [FixedMaskHead([9.0, 1.0, 9]), FixedMaskHead([9.0, -2.0, 9])]
    heads = build_heads(cascade_mask_rcnn_config(**TINY, stages=stages, score_threshold=0.2), [first, second], masks)
    (found,) = heads.detect(MAPS, [PROPOSALS[:1]], [SIZE])
    assert found.labels.tolist() == [1]
    score = math.exp(2) / (2 + math.exp(2) + math.exp(1))
    assert found.scores.item() == pytest.approx(score)
    torch.testing.assert_close(found.boxes, torch.tensor([[16.0, 10, 36, 30]]))
    prob = (1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(2))) / 2
    torch.testing.assert_close(found.mask_probs, torch.full((1, 28, 28), prob))


def select(config: DetectorConfig, boxes: list[list[float]], scores: list[list[float]]) -> tuple[Tensor, ...]:
    heads = CascadeRoIHeads(config, STRIDES)
    return heads._select(torch.tensor(boxes)[:, None].expand(-1, 3, 4), torch.tensor(scores))


def test_detections_score_above_the_threshold_and_are_suppressed_within_their_class() -> None:
    config = mask_rcnn_config(**TINY, score_threshold=0.0625)
    boxes = [[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4]]
    scores = [[0.5, 0.0, 0.1], [0.4, 0.7, 0.0], [0.3, 0.0, 0.0625]]
    found, score, label = select(config, boxes, scores)
    # Class 0 keeps the first and the third box (IoU 0.4); the second falls to the first (0.8). A score at the
    # threshold, of the third box and class 2, is not above it.
    assert score.tolist() == pytest.approx([0.7, 0.5, 0.3, 0.1])
    assert label.tolist() == [1, 0, 0, 2]
    assert found.tolist() == [boxes[1], boxes[0], boxes[2], boxes[0]]


def test_the_best_detections_remain_whatever_their_class() -> None:
    config = mask_rcnn_config(**TINY)
    assert config.max_detections == 100 and config.score_threshold == 0.05
    boxes = [[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(60)]
    scores = [[0.2 + 0.01 * i, 0.1, 0.15] for i in range(60)]
    _, score, label = select(config, boxes, scores)
    assert label.tolist() == [0] * 60 + [2] * 40
    assert score[0].item() == pytest.approx(0.79)


def test_no_detection_and_no_proposal() -> None:
    heads = CascadeRoIHeads(replace(cascade_mask_rcnn_config(**TINY), score_threshold=1.0), STRIDES).eval()
    for proposals in (PROPOSALS, PROPOSALS[:0]):
        (found,) = heads.detect(MAPS, [proposals], [SIZE])
        assert [tuple(x.shape) for x in found] == [(0, 4), (0,), (0,), (0, 28, 28)]
