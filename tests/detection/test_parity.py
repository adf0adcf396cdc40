"""The heads against the published detectors' code, at the same weights and feature maps.

The fixtures hold what that code computes over seeded maps of a 210 x 400 image, padded to 224 x 448: samples of every
map, the 1000 proposals, the 100 detections, and all losses where every RoI is sampled, which leaves nothing to chance.
"""

import json

import numpy as np
import pytest
import torch
from detection_parity import CHANNELS, FIXTURES, FixedBackbone, build_published_detector, load_fixture
from numpy.typing import NDArray
from torch import Tensor, nn

from wsfvit.detection.model.config import cascade_mask_rcnn_config, mask_rcnn_config
from wsfvit.detection.model.detector import Detector, to_original

KINDS = ("maskrcnn", "cascade")
SIZE = (210, 400)
NO_IMAGE = torch.zeros(1, 3, 224, 448)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def published(kind: str) -> dict[str, NDArray]:
    return load_fixture(f"det_heads_{kind}_parity")


@pytest.fixture(scope="module")
def detector(kind: str) -> Detector:
    return build_published_detector(kind)


@pytest.fixture(scope="module")
def features(detector: Detector) -> list[Tensor]:
    with torch.no_grad():
        return detector.forward_features(NO_IMAGE)


@pytest.fixture(scope="module")
def proposals(detector: Detector, features: list[Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits, offsets, anchors = detector.rpn.predict(features)
        return detector.rpn.propose(logits, offsets, anchors, [SIZE], training=False)[0]


def assert_near(actual: Tensor, expected: NDArray) -> None:
    """Within what float32 sums of another order differ by: 1e-4 of the largest value."""
    tolerance = 1e-4 * float(np.abs(expected).max())
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-4, atol=tolerance)


def test_pyramid_and_rpn_outputs(detector: Detector, features: list[Tensor], published: dict[str, NDArray]) -> None:
    with torch.no_grad():
        logits, offsets = detector.rpn.head(features)
    assert len(features) == 5
    for level in range(5):
        for name, x, number in (
            (f"fpn{level}", features[level], 1024),
            (f"rpn_cls{level}", logits[level], 512),
            (f"rpn_reg{level}", offsets[level], 512),
        ):
            assert_near(x.flatten()[:: max(1, x.numel() // number)], published[name])


def test_proposals(proposals: tuple[Tensor, Tensor], published: dict[str, NDArray]) -> None:
    boxes, scores = proposals
    assert len(boxes) == published["n_proposals"] == 1000
    assert_near(boxes[:50], published["proposals_top50"])
    assert_near(scores[:50], published["proposal_scores_top50"])
    assert_near(boxes.sum(dim=0), published["proposals_sum"])


def test_detections(
    kind: str,
    detector: Detector,
    features: list[Tensor],
    proposals: tuple[Tensor, Tensor],
    published: dict[str, NDArray],
) -> None:
    """Only the proposals that detections come from are scored: the others' boxes are all suppressed or rank lower."""
    kept = json.loads((FIXTURES / "kept_proposals.json").read_text())[kind]
    with torch.no_grad():
        (found,) = detector.roi_heads.detect(features[:-1], [proposals[0][kept]], [SIZE])
    assert found.labels.tolist() == published["det_labels"].tolist()
    assert_near(found.boxes, published["det_boxes"])
    assert_near(found.scores, published["det_scores"])
    assert_near(found.mask_probs[:4], published["mask_prob_first4"])
    boxes, masks = to_original(found, SIZE, SIZE)
    assert torch.equal(boxes, found.boxes) and masks.shape == (100, *SIZE)
    # A pixel at the threshold may fall to either side.
    assert np.abs(masks.sum(dim=(1, 2)).numpy() - published["mask_area"]).max() <= 1


def test_training_losses(kind: str, detector: Detector, features: list[Tensor], published: dict[str, NDArray]) -> None:
    boxes = torch.from_numpy(published["gt_boxes"])
    target = {"boxes": boxes, "labels": torch.from_numpy(published["gt_labels"]), "masks": draw_ellipses(boxes)}
    proposals = [torch.from_numpy(published["train_proposals"])]
    detector.train()
    with torch.no_grad():
        losses = detector.roi_heads.compute_losses(features[:-1], proposals, [SIZE], [target])
    detector.eval()
    expected = {
        name.replace("loss_loss_", "s0_loss_").replace("loss_s", "s").replace(".", "_").replace("bbox", "box"): value
        for name, value in published.items()
        if name.startswith("loss_") and "acc" not in name
    }
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(float(expected[name]), rel=1e-4), name


def draw_ellipses(boxes: Tensor) -> Tensor:
    """The ellipse inscribed in each box, tested at pixel centres, on 224 x 448."""
    x, y = torch.arange(448) + 0.5, torch.arange(224)[:, None] + 0.5
    centers, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    columns = (x - centers[:, 0, None, None]) / radii[:, 0, None, None]
    rows = (y - centers[:, 1, None, None]) / radii[:, 1, None, None]
    return (columns**2 + rows**2 <= 1).to(torch.uint8)


def test_anchor_assignment(detector: Detector, features: list[Tensor], published: dict[str, NDArray]) -> None:
    anchors = torch.cat(detector.rpn.predict(features)[2])
    matches = detector.rpn.match_anchors(anchors, torch.from_numpy(published["gt_boxes"]), SIZE)
    count, allowed, positive, negative, ignored = published["rpn_assign_counts"].tolist()
    assert len(matches) == count
    assert (matches > 0).sum() == positive and (matches == 0).sum() == negative
    # The fixture does not count the anchors that the border rule leaves out.
    assert (matches == -1).sum() == ignored + count - allowed
    index = matches.clamp(min=0).nonzero()[:, 0]
    assert index.tolist() == published["rpn_pos_index"].tolist()
    assert (matches[index] - 1).tolist() == published["rpn_pos_gt"].tolist()


PARAMETERS = {"fpn": 2_607_104, "rpn": 593_935, "box_2fc": 14_306_705, "box_4conv1fc": 15_618_449, "mask": 2_643_280}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_parts() -> None:
    with torch.device("meta"):
        mask = Detector(mask_rcnn_config(), FixedBackbone([]))
        cascade = Detector(cascade_mask_rcnn_config(), FixedBackbone([]))
        wide = Detector(cascade_mask_rcnn_config(), FixedBackbone([], tuple(c * 5 // 4 for c in CHANNELS)))
    for detector in (mask, cascade):
        assert count(detector.fpn) == PARAMETERS["fpn"]
        assert count(detector.rpn) == PARAMETERS["rpn"]
        assert {count(head) for head in detector.roi_heads.mask_heads} == {PARAMETERS["mask"]}
    assert count(wide.fpn) == 2_668_544
    assert [count(head) for head in mask.roi_heads.box_heads] == [PARAMETERS["box_2fc"]]
    assert [count(head) for head in cascade.roi_heads.box_heads] == [PARAMETERS["box_4conv1fc"]] * 3
    assert len(mask.roi_heads.mask_heads) == 1 and len(cascade.roi_heads.mask_heads) == 3
