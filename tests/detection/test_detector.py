"""The whole detector over a small backbone: gradients, images without objects, half precision, learning, settings."""

import pytest
import torch
from torch import Tensor, nn

from wsfvit.detection.model.config import cascade_mask_rcnn_config, mask_rcnn_config
from wsfvit.detection.model.detector import Detector
from wsfvit.detection.model.roi_heads import Detections
from wsfvit.utils.errors import UserError

BUILDERS = [mask_rcnn_config, cascade_mask_rcnn_config]
SIZES = [(64, 96), (50, 70)]


class SmallBackbone(nn.Module):
    """Four strided convolutions."""

    channels, strides = (4, 4, 8, 8), (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 2, 2), nn.Conv2d(4, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for conv in self.convs:
            x = conv(x).relu()
            maps.append(x)
        return maps


def build_small(build: type, **changes: object) -> Detector:
    torch.manual_seed(0)
    small = {"fpn_width": 8, "fc_width": 16, "roi_samples": 64, "proposals_test": 50, "proposals_train": 50}
    return Detector(build("small", 3, **{**small, **changes}), SmallBackbone())


def make_images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def make_targets(*, objects: bool = True) -> list[dict[str, Tensor]]:
    """Three objects in the first image, none in the second."""
    targets = []
    for size, number in zip(SIZES, (3 if objects else 0, 0), strict=True):
        boxes = torch.tensor([[8.0, 8, 40, 40], [20, 10, 90, 60], [50, 20, 60, 30]])[:number]
        masks = torch.zeros(number, *size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        targets.append({"boxes": boxes, "labels": torch.arange(number), "masks": masks})
    return targets


@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize("build", BUILDERS)
def test_every_parameter_has_a_finite_gradient(build: type, objects: bool) -> None:
    """Also without any object: otherwise distributed training would wait for it."""
    detector = build_small(build)
    losses = detector(make_images(), SIZES, make_targets(objects=objects))
    stages = len(detector.config.stages)
    parts = {f"s{i}_loss_{part}" for i in range(stages) for part in ("cls", "box", "mask")}
    assert losses.keys() == {"loss_rpn_cls", "loss_rpn_box"} | parts
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    assert (losses["s0_loss_mask"] > 0) == objects
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("build", BUILDERS)
def test_detections(build: type) -> None:
    detector = build_small(build, score_threshold=0.0, max_detections=20).eval()
    with torch.no_grad():
        found = detector(make_images(), SIZES)
    assert len(found) == 2
    for detections, (height, width) in zip(found, SIZES, strict=True):
        assert isinstance(detections, Detections)
        assert detections.boxes.shape == (20, 4) and detections.mask_probs.shape == (20, 28, 28)
        assert (detections.boxes >= 0).all() and (detections.boxes <= torch.tensor([width, height] * 2)).all()
        assert (detections.scores.diff() <= 0).all() and detections.labels.unique().max() <= 2
        assert ((detections.mask_probs >= 0) & (detections.mask_probs <= 1)).all()


def test_images_of_a_batch_do_not_mix() -> None:
    """An image alone, with the same padding, has the same detections as in a batch."""
    detector = build_small(cascade_mask_rcnn_config, score_threshold=0.0, max_detections=20).eval()
    images = make_images()
    with torch.no_grad():
        together = detector(images, SIZES)
        for index in range(2):
            (alone,) = detector(images[index : index + 1], SIZES[index : index + 1])
            for x, y in zip(alone, together[index], strict=True):
                torch.testing.assert_close(x, y)


@pytest.mark.parametrize("build", BUILDERS)
def test_autocast_keeps_boxes_and_losses_in_float32(build: type) -> None:
    detector = build_small(build, score_threshold=0.0)
    exact = detector(make_images(), SIZES, make_targets())
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(make_images(), SIZES, make_targets())
        (found, _) = detector.eval()(make_images(), SIZES)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert found.boxes.dtype == found.scores.dtype == found.mask_probs.dtype == torch.float32
    for name in ("loss_rpn_cls", "s0_loss_cls", "s0_loss_mask"):
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.05), name


def test_sampling_follows_the_global_seed() -> None:
    detector = build_small(mask_rcnn_config, roi_samples=8, rpn_samples=16)
    totals = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        totals.append(sum(detector(make_images(), SIZES, make_targets()).values()).item())
    assert totals[0] == totals[1] != totals[2]


def test_initial_weights() -> None:
    """As published: Xavier in the pyramid and the linear layers, small normal values where scores and boxes begin."""
    detector = build_small(cascade_mask_rcnn_config, fpn_width=64, fc_width=128)
    head = detector.roi_heads.box_heads[0]
    assert head.cls.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert head.reg.weight.std().item() == pytest.approx(0.001, rel=0.2)
    linear = head.hidden[5].weight
    assert linear.abs().max().item() == pytest.approx((6 / (128 + 64 * 49)) ** 0.5, rel=1e-3)
    lateral = detector.fpn.inner_blocks[0][0].weight
    assert lateral.abs().max().item() == pytest.approx((6 / (64 + 4)) ** 0.5, rel=0.05)
    heads = [*detector.fpn.modules(), *detector.rpn.modules(), *detector.roi_heads.modules()]
    biases = [m.bias for m in heads if getattr(m, "bias", None) is not None]
    assert biases and not any(bias.any() for bias in biases)


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="no setting box_hed"):
        mask_rcnn_config(box_hed="2fc")
    with pytest.raises(UserError, match="box_loss is 'iou'; it must be one of l1, giou"):
        cascade_mask_rcnn_config(box_loss="iou")
    with pytest.raises(UserError, match="at least one category"):
        mask_rcnn_config(num_classes=0)
    with pytest.raises(UserError, match="at least one stage"):
        mask_rcnn_config(stages=())


def test_published_settings() -> None:
    """What Mask R-CNN and the cascade differ in."""
    mask, cascade = mask_rcnn_config(), cascade_mask_rcnn_config()
    assert [(s.iou_threshold, s.loss_weight) for s in mask.stages] == [(0.5, 1)]
    assert [(s.iou_threshold, s.loss_weight) for s in cascade.stages] == [(0.5, 1), (0.6, 0.5), (0.7, 0.25)]
    differ = {name for name in vars(mask) if getattr(mask, name) != getattr(cascade, name)}
    assert differ == {
        "stages",
        "box_head",
        "box_loss",
        "box_loss_weight",
        "low_quality_rois",
        "rpn_box_loss",
        "rpn_border",
        "proposals_train",
    }
