"""Proposals and losses of the region proposal network, by hand."""

import math

import pytest
import torch
from torch import Tensor

from wsfvit.detection.model.config import DetectorConfig, cascade_mask_rcnn_config, mask_rcnn_config
from wsfvit.detection.model.rpn import RegionProposalNetwork

SIZE = (100, 200)


def build_rpn(config: DetectorConfig) -> RegionProposalNetwork:
    return RegionProposalNetwork(config, (4, 8))


def boxes(*corners: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def propose(config: DetectorConfig, levels: list[tuple[list[float], Tensor]], training: bool = False) -> Tensor:
    """Proposals of anchors that stay where they are, of (logits, anchors) of each level."""
    logits = [torch.tensor([values]) for values, _ in levels]
    anchors = [x for _, x in levels]
    offsets = [torch.zeros(1, len(x), 4) for x in anchors]
    return build_rpn(config).propose(logits, offsets, anchors, [SIZE], training)[0][0]


def test_proposals_are_suppressed_within_their_level() -> None:
    first = boxes((0, 0, 50, 50), (0, 0, 50, 40), (0, 0, 50, 30))
    found = propose(mask_rcnn_config(), [([1.0, 3.0, 2.0], first), ([2.5], first[:1])])
    # Best first. In the first level the second box suppresses the first (IoU 0.8) and the third (0.75).
    assert found.tolist() == [[0, 0, 50, 40], [0, 0, 50, 50]]
    found = propose(mask_rcnn_config(), [([1.0, 3.0], first[[0, 2]])])
    assert len(found) == 2  # IoU 0.6


def test_proposals_are_clipped_and_flat_ones_dropped() -> None:
    anchors = boxes((-10, -10, 20, 30), (150, 50, 400, 90), (200, 20, 260, 60), (30, -60, 60, -5))
    found = propose(mask_rcnn_config(), [([4.0, 3.0, 2.0, 1.0], anchors)])
    assert found.tolist() == [[0, 0, 20, 30], [150, 50, 200, 90]]


def test_numbers_of_proposals() -> None:
    places = torch.arange(20.0)
    apart = torch.stack([places * 10, places * 0, places * 10 + 9, places * 0 + 9], dim=1)
    levels = [(places.tolist(), apart), ((-places).tolist(), apart)]
    config = mask_rcnn_config(candidates_train=8, candidates_test=4, proposals_train=10, proposals_test=7)
    trained = propose(config, levels, training=True)
    assert trained[:, 0].tolist() == [190, 180, 170, 160, 150, 140, 130, 120, 0, 10]
    assert propose(config, levels)[:, 0].tolist() == [190, 180, 170, 160, 0, 10, 20]


def losses_of(
    config: DetectorConfig, logits: Tensor, offsets: Tensor, anchors: Tensor, objects: list[Tensor]
) -> dict[str, Tensor]:
    targets = [{"boxes": x} for x in objects]
    return build_rpn(config).compute_losses([logits], [offsets], [anchors], [SIZE] * len(objects), targets)


@pytest.mark.parametrize("build", [mask_rcnn_config, cascade_mask_rcnn_config])
def test_losses_are_divided_by_all_sampled_anchors_of_the_batch(build: type) -> None:
    """Two images of two anchors, of which one is an object: four sampled in all."""
    anchors = boxes((0, 0, 20, 20), (50, 50, 70, 70))
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    offsets = torch.zeros(2, 2, 4)
    offsets[0, 0] = torch.tensor([0.5, 0.05, 0, 0])
    losses = losses_of(build(), logits, offsets, anchors, [boxes((0, 0, 20, 20)), boxes()])
    expected = sum(math.log1p(math.exp(x)) for x in (-2.0, -1.0, 0.5, 0.0)) / 4
    assert losses["loss_rpn_cls"].item() == pytest.approx(expected)
    if build is mask_rcnn_config:
        assert losses["loss_rpn_box"].item() == pytest.approx(0.55 / 4)
    else:  # linear above 1 / 9, quadratic below
        assert losses["loss_rpn_box"].item() == pytest.approx((0.5 - 1 / 18 + 0.05**2 * 9 / 2) / 4)


def test_at_most_256_anchors_of_which_half_are_objects() -> None:
    anchors = boxes((0, 0, 20, 20), (50, 50, 70, 70)).repeat_interleave(500, dim=0)
    logits = torch.zeros(1, 1000)
    logits[:, 500:] = -1
    losses = losses_of(mask_rcnn_config(), logits, torch.ones(1, 1000, 4), anchors, [boxes((0, 0, 20, 20))])
    assert losses["loss_rpn_cls"].item() == pytest.approx((math.log(2) + math.log1p(math.exp(-1))) / 2)
    assert losses["loss_rpn_box"].item() == pytest.approx(4 * 128 / 256)


def test_without_objects_the_box_loss_is_zero_and_has_a_gradient() -> None:
    anchors = boxes((0, 0, 20, 20), (50, 50, 70, 70))
    logits, offsets = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, 4, requires_grad=True)
    losses = losses_of(cascade_mask_rcnn_config(), logits, offsets, anchors, [boxes()])
    assert losses["loss_rpn_cls"].item() == pytest.approx(math.log(2)) and losses["loss_rpn_box"] == 0
    sum(losses.values()).backward()
    assert offsets.grad is not None and not offsets.grad.any() and logits.grad.all()


@pytest.mark.parametrize("build", [mask_rcnn_config, cascade_mask_rcnn_config])
def test_anchor_thresholds(build: type) -> None:
    """Anchors of IoU 0.7, 0.5, 0.25 with the first object are one, ignored and background; 0.3 is the second's best."""
    anchors = boxes((0, 0, 20, 14), (0, 0, 20, 10), (0, 0, 20, 5), (50, 50, 70, 56), (50, 50, 70, 55))
    objects = boxes((0, 0, 20, 20), (50, 50, 70, 70))
    assert build_rpn(build()).match_anchors(anchors, objects, SIZE).tolist() == [1, -1, 0, 2, 0]


def test_cascade_ignores_anchors_that_leave_the_image() -> None:
    anchors = boxes((0, 0, 20, 20), (-1, 50, 19, 70), (190, 50, 201, 70), (50, 90, 60, 101))
    objects = boxes((-1, 50, 19, 70))
    mask, cascade = build_rpn(mask_rcnn_config()), build_rpn(cascade_mask_rcnn_config())
    assert mask.match_anchors(anchors, objects, SIZE).tolist() == [0, 1, 0, 0]
    assert cascade.match_anchors(anchors, objects, SIZE).tolist() == [0, -1, -1, -1]
    # No anchor lies inside at all: nothing is sampled, and the losses are zeros, not NaN.
    losses = losses_of(cascade_mask_rcnn_config(), torch.zeros(1, 1), torch.zeros(1, 1, 4), anchors[1:2], [objects])
    assert losses == {"loss_rpn_cls": 0, "loss_rpn_box": 0}
