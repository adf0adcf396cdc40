"""Configuration of a detector: one frozen dataclass, and a builder for each of the two published kinds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wsfvit.utils.errors import UserError


@dataclass(frozen=True)
class StageConfig:
    """One stage of box and mask heads."""

    iou_threshold: float = 0.5  # an RoI is an object at or above this IoU, and background below it
    loss_weight: float = 1.0  # factor of the stage's three losses
    # Standard deviations that the targets (dx, dy, dw, dh) are divided by.
    box_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)


CASCADE_STAGES = (
    StageConfig(0.5, 1.0, (0.1, 0.1, 0.2, 0.2)),
    StageConfig(0.6, 0.5, (0.05, 0.05, 0.1, 0.1)),
    StageConfig(0.7, 0.25, (0.033, 0.033, 0.067, 0.067)),
)


@dataclass(frozen=True)
class DetectorConfig:
    """Settings of a detector. The defaults are Mask R-CNN's; proposals are counted per image."""

    backbone: str  # name of a registered model that can be built as a feature extractor
    num_classes: int  # number of categories, K; the background is class K of the classifier
    backbone_options: Mapping[str, Any] = field(default_factory=dict)  # arguments of ``DetectionBackbone``
    # One stage is Mask R-CNN, several are a cascade, each refining the boxes of the one before.
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    # Hidden layers of a box head: "2fc", two linear layers, or "4conv1fc", four 3x3 convolutions with batch norm and
    # one linear layer.
    box_head: Literal["2fc", "4conv1fc"] = "2fc"
    box_loss: Literal["l1", "giou"] = "l1"  # "l1" on the encoded boxes, or "giou" on the decoded ones
    box_loss_weight: float = 1.0  # factor of the box loss, in addition to the stage's
    # Also match each object's best proposals to it, if they reach the stage's IoU threshold.
    low_quality_rois: bool = True
    fpn_width: int = 256  # channels of the pyramid, and of the convolutions of all heads
    fc_width: int = 1024  # width of the box heads' linear layers
    rpn_box_loss: Literal["l1", "smooth_l1"] = "l1"  # "l1" or "smooth_l1" (beta 1/9) on the encoded boxes
    # Pixels by which an anchor may leave the image and still be trained on; None sets no limit.
    rpn_border: float | None = None
    rpn_positive_iou: float = 0.7  # an anchor is an object at or above this IoU
    # An anchor is background below this IoU; an object's best anchors match at or above it.
    rpn_negative_iou: float = 0.3
    rpn_samples: int = 256  # anchors sampled for the loss, per image
    rpn_positive_fraction: float = 0.5  # at most this share of the sampled anchors are objects
    rpn_nms_threshold: float = 0.7  # IoU above which the worse of two proposals of one pyramid level is dropped
    candidates_train: int = 2000  # best anchors of each level that enter the suppression, in training
    candidates_test: int = 1000  # the same, at inference
    proposals_train: int = 1000  # proposals that remain, in training
    proposals_test: int = 1000  # the same, at inference
    roi_samples: int = 512  # proposals sampled for the losses of a stage, per image
    roi_positive_fraction: float = 0.25  # at most this share of the sampled proposals are objects
    score_threshold: float = 0.05  # detections have a higher score than this
    nms_threshold: float = 0.5  # IoU above which the worse of two detections of one class is dropped
    max_detections: int = 100  # detections that remain, per image
    mask_loss_weight: float = 1.0  # factor of the mask loss, in addition to the stage's; 0 for a detector of boxes only

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise UserError(f"num_classes is {self.num_classes}: a detector needs at least one category")
        if not self.stages:
            raise UserError("stages is empty: a detector needs at least one stage")
        known = {"box_head": ("2fc", "4conv1fc"), "box_loss": ("l1", "giou"), "rpn_box_loss": ("l1", "smooth_l1")}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")


def mask_rcnn_config(backbone: str = "wsfvit_t_224", num_classes: int = 80, **changes: Any) -> DetectorConfig:
    """Mask R-CNN (He et al., arXiv 1703.06870) as published with WSF-ViT: two linear layers, L1 losses, one stage."""
    unknown = sorted(set(changes) - set(DetectorConfig.__dataclass_fields__))
    if unknown:
        raise UserError(f"a detector has no setting {', '.join(unknown)}; see wsfvit/detection/model/config.py for all")
    return DetectorConfig(backbone, num_classes, **changes)


def cascade_mask_rcnn_config(backbone: str = "wsfvit_t_224", num_classes: int = 80, **changes: Any) -> DetectorConfig:
    """Cascade Mask R-CNN (Cai and Vasconcelos, arXiv 1906.09756) as published with WSF-ViT.

    Three stages with box heads of four convolutions, batch norm and one linear layer, the GIoU loss (Rezatofighi et
    al., arXiv 1902.09630), class-specific boxes, and a mask head for each stage.
    """
    cascade: dict[str, Any] = {
        "stages": CASCADE_STAGES,
        "box_head": "4conv1fc",
        "box_loss": "giou",
        "box_loss_weight": 10.0,
        "low_quality_rois": False,
        "rpn_box_loss": "smooth_l1",
        "rpn_border": 0.0,
        "proposals_train": 2000,
    }
    return mask_rcnn_config(backbone, num_classes, **{**cascade, **changes})


# Names on the command line.
KINDS: dict[str, Callable[..., DetectorConfig]] = {
    "mask_rcnn": mask_rcnn_config,
    "cascade_mask_rcnn": cascade_mask_rcnn_config,
}
