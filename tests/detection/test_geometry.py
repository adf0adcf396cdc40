"""Anchors, box offsets, pyramid levels and masks: against the published code's values and by hand."""

import math

import pytest
import torch
from detection_parity import load_fixture
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from wsfvit.detection.model.boxes import decode_boxes, encode_boxes
from wsfvit.detection.model.config import CASCADE_STAGES
from wsfvit.detection.model.detector import to_original
from wsfvit.detection.model.heads import build_mask_targets, interpolate_masks, paste_masks, pool_rois, pyramid_levels
from wsfvit.detection.model.roi_heads import GIOU_EPS, Detections
from wsfvit.detection.model.rpn import build_anchors, find_inside

CPU = torch.device("cpu")
UNIT = (1.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in load_fixture("det_math_parity").items()}


@pytest.mark.parametrize("level", range(5))
def test_anchors_equal_the_published(published: dict[str, Tensor], level: int) -> None:
    stride = 4 * 2**level
    anchors = build_anchors(896 // stride, math.ceil(1120 / stride), stride, CPU)
    assert len(anchors) == published[f"anchors_l{level}_n"]
    torch.testing.assert_close(anchors[:3], published[f"anchors_base{level}"])
    torch.testing.assert_close(anchors[:6], published[f"anchors_l{level}_first6"])
    torch.testing.assert_close(anchors[-3:], published[f"anchors_l{level}_last3"])


def test_anchors_by_hand() -> None:
    anchors = build_anchors(2, 3, 16, CPU).view(2, 3, 3, 4)
    assert anchors[1, 2, 1].tolist() == [32 - 64, 16 - 64, 32 + 64, 16 + 64]
    sizes = anchors[..., 2:] - anchors[..., :2]
    torch.testing.assert_close(sizes[..., 1] / sizes[..., 0], torch.tensor([0.5, 1, 2]).expand(2, 3, 3))
    torch.testing.assert_close(sizes.prod(dim=-1), torch.full((2, 3, 3), 128.0**2))


def test_border_rule() -> None:
    """A box that ends at the image's last coordinate counts as outside: the published rule is strict there."""
    boxes = torch.tensor([[0.0, 0, 99, 49], [0, 0, 100, 49], [0, 0, 99, 50], [-0.5, 0, 9, 9], [0, -0.5, 9, 9]])
    assert find_inside(boxes, (50, 100), 0).tolist() == [True, False, False, False, False]
    assert find_inside(boxes, (50, 100), 1).all()


@pytest.mark.parametrize("stage", range(3))
def test_offsets_equal_the_published(published: dict[str, Tensor], stage: int) -> None:
    stds = CASCADE_STAGES[stage].box_stds
    rois = published["rois"]
    torch.testing.assert_close(encode_boxes(published["gt"], rois, stds), published[f"encode_s{stage}"])
    boxes = decode_boxes(published["deltas"].view(-1, 2, 4), rois[:, None], stds)
    torch.testing.assert_close(boxes.flatten(1), published[f"decode_s{stage}"], rtol=1e-5, atol=1e-3)
    clipped = clip_boxes_to_image(boxes, (896, 1120)).flatten(1)
    torch.testing.assert_close(clipped, published[f"decode_clip_s{stage}"], rtol=1e-5, atol=1e-3)


def test_offsets_by_hand() -> None:
    reference, box = torch.tensor([10.0, 20, 30, 60]), torch.tensor([20.0, 20, 30, 100])
    stds = (0.1, 0.1, 0.2, 0.2)
    offsets = encode_boxes(box, reference, stds)
    expected = [5 / 20 / 0.1, 20 / 40 / 0.1, math.log(0.5) / 0.2, math.log(2) / 0.2]
    torch.testing.assert_close(offsets, torch.tensor(expected))
    torch.testing.assert_close(decode_boxes(offsets, reference, stds), box)


def test_sizes_are_limited_on_both_sides() -> None:
    reference = torch.tensor([0.0, 0, 16, 16])
    boxes = decode_boxes(torch.tensor([[0.0, 0, 99, -99]]), reference, UNIT)
    torch.testing.assert_close(boxes[0, 2:] - boxes[0, :2], torch.tensor([1000.0, 16 * 16 / 1000]))


def test_giou_equals_the_published(published: dict[str, Tensor]) -> None:
    losses = generalized_box_iou_loss(published["rois"], published["gt"], eps=GIOU_EPS)
    torch.testing.assert_close(losses, published["giou_loss"])


def test_levels(published: dict[str, Tensor]) -> None:
    assert torch.equal(pyramid_levels(published["rois"], 4), published["roi_level"])
    # A side that rounding left a little short of 112 counts as 112.
    sides = torch.tensor([0.0, 1, 111, 111.99998, 112, 223, 224, 447, 448, 5000])
    boxes = torch.stack([torch.zeros(10), torch.zeros(10), sides, sides], dim=1)
    assert pyramid_levels(boxes, 4).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]


def test_pooling_takes_each_box_from_its_level_and_image() -> None:
    """Constant maps tell where a pooled value comes from; a ramp has its own value at each cell's centre."""
    features = [
        torch.tensor([10.0 * level, 10.0 * level + 1]).view(2, 1, 1, 1).expand(2, 1, 64 >> level, 64 >> level)
        for level in range(4)
    ]
    big, small = torch.tensor([[0.0, 0, 230, 230]]), torch.tensor([[4.0, 4, 20, 20]])
    pooled = pool_rois(features, (4, 8, 16, 32), [torch.cat([big, small]), torch.cat([small, big])], 7)
    assert pooled.shape == (4, 1, 7, 7)
    torch.testing.assert_close(pooled, torch.tensor([20.0, 0, 1, 21]).view(4, 1, 1, 1).expand(4, 1, 7, 7))
    ramp = (4 * torch.arange(64.0) + 2).expand(1, 1, 64, 64)
    box = torch.tensor([[8.0, 8, 64, 64]])
    pooled = pool_rois([ramp], (4,), [box], 7)
    torch.testing.assert_close(pooled[0, 0, 0], 8 + 56 / 7 * (torch.arange(7) + 0.5))
    assert pool_rois(features, (4, 8, 16, 32), [box[:0], box[:0]], 7).shape == (0, 1, 7, 7)


def test_paste_equals_the_published(published: dict[str, Tensor]) -> None:
    probs, boxes = published["paste_in"][:, 0], published["paste_boxes"]
    size = tuple(published["paste_hw"].tolist())
    expected = published["paste_out_prob"]
    torch.testing.assert_close(interpolate_masks(probs, boxes, size), expected, rtol=1e-5, atol=1e-5)
    masks = paste_masks(probs, boxes, size)
    clear = (expected - 0.5).abs() > 1e-4
    assert torch.equal(masks[clear], (expected >= 0.5)[clear])


def test_paste_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 2 x 2 map over a box of 4 x 4 pixels: weights by hand, the threshold inclusive, an empty box empty."""
    probs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    box = torch.tensor([[2.0, 1.0, 6.0, 5.0]])
    values = interpolate_masks(probs, box, (6, 8))
    # Columns' places in the map: (x + 0.5 - 2) / 2 - 0.5; beyond the outer cells' centres the value falls to zero.
    assert values[0, 2].tolist() == [0, 0.25, 0.75, 0.75, 0.25, 0, 0, 0]
    assert paste_masks(probs, box, (6, 8), threshold=0.75)[0, 2].nonzero()[:, 0].tolist() == [2, 3]
    assert not paste_masks(probs, torch.tensor([[3.0, 3, 3, 5]]), (6, 8)).any()
    assert paste_masks(probs[:0], box[:0], (6, 8)).shape == (0, 6, 8)
    three = (probs.expand(3, 2, 2), box + torch.tensor([[0.0], [1], [2]]), (6, 8))
    whole = paste_masks(*three)
    monkeypatch.setattr("wsfvit.detection.model.heads.PASTE_ELEMENTS", 6 * 8)
    assert torch.equal(paste_masks(*three), whole)


def test_to_original_scales_each_axis() -> None:
    detections = Detections(
        torch.tensor([[10.0, 20, 30, 40]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.ones(1, 28, 28)
    )
    boxes, masks = to_original(detections, (100, 50), (50, 100))
    assert boxes.tolist() == [[20, 10, 60, 20]]
    expected = torch.zeros(50, 100, dtype=torch.bool)
    expected[10:20, 20:60] = True
    assert torch.equal(masks[0], expected)


def test_mask_targets_by_hand() -> None:
    """Cells are averaged, then thresholded at one half, which itself belongs to the object."""
    masks = torch.zeros(2, 56, 56, dtype=torch.uint8)
    masks[0, :, 1::2] = 1  # each cell of the full box holds one column of the object and one without: exactly half
    masks[1, :28, :14] = 1
    boxes = torch.tensor([[0.0, 0, 56, 56], [0, 0, 56, 56], [0, 0, 28, 28]])
    targets = build_mask_targets(masks, boxes, torch.tensor([0, 1, 1]))
    assert targets[0].all()
    assert targets[1].sum() == 14 * 7 and targets[1, :14, :7].all()
    assert targets[2].sum() == 28 * 14 and targets[2, :, :14].all()
    assert build_mask_targets(masks[:0], boxes[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 28, 28)
