"""The detector: backbone, feature pyramid, region proposals, and heads on them.

Reading order: config.py, Detector, rpn.py, roi_heads.py; boxes.py matches anchors and proposals to objects.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from wsfvit.detection.model.boxes import Sizes, Targets
from wsfvit.detection.model.config import DetectorConfig
from wsfvit.detection.model.heads import paste_masks
from wsfvit.detection.model.roi_heads import CascadeRoIHeads, Detections
from wsfvit.detection.model.rpn import RegionProposalNetwork


class Detector(nn.Module):
    """Mask R-CNN or Cascade Mask R-CNN.

    The backbone returns a list of feature maps (B, C, H / stride, W / stride), finest first, and has the attributes
    ``channels`` and ``strides``.
    """

    def __init__(self, config: DetectorConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        strides = tuple(int(x) for x in backbone.strides)  # type: ignore[union-attr]
        self.fpn = FeaturePyramidNetwork(list(backbone.channels), config.fpn_width, LastLevelMaxPool())  # type: ignore[arg-type]
        for layer in self.fpn.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
        # The pyramid's last level, a subsampled copy of the one before, is only for proposals.
        self.rpn = RegionProposalNetwork(config, (*strides, 2 * strides[-1]))
        self.roi_heads = CascadeRoIHeads(config, strides)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Maps of the pyramid (B, fpn_width, H / stride, W / stride), finest first, the last only for proposals."""
        maps = OrderedDict((str(level), x) for level, x in enumerate(self.backbone(images)))
        return list(self.fpn(maps).values())

    def forward(
        self, images: Tensor, sizes: Sizes, targets: Targets | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Computes losses with targets, detections without.

        Args:
            images: float32 (B, 3, H, W), normalised, padded at the bottom and the right.
            sizes: Height and width of each image without its padding.
            targets: Of each image ``boxes``, float32 (N, 4); ``labels``, int64 (N,) from 0 to K - 1; ``masks``, uint8
                (N, height, width) of the image without its padding. N may be 0.

        Returns:
            The weighted losses, scalars by name, to be summed; or the detections of each image.
        """
        features = self.forward_features(images)
        proposals, losses = self.rpn(features, sizes, targets)
        # RoIs are pooled and boxes computed in float32, whatever the autocast of the layers.
        maps = [x.float() for x in features[:-1]]
        if targets is None:
            return self.roi_heads.detect(maps, proposals, sizes)
        return {**losses, **self.roi_heads.compute_losses(maps, proposals, sizes, targets)}


def to_original(
    detections: Detections, size: tuple[int, int], original_size: tuple[int, int], threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Converts detections to boxes and masks in the image before it was resized.

    Args:
        detections: Detections in the transformed image.
        size, original_size: (height, width) of the transformed image without its padding, and of the original one.
        threshold: A pixel belongs to an object at or above this probability.

    Returns:
        Boxes, float32 (M, 4), in pixels of the original image, and masks, bool (M, height, width).
    """
    y_scale, x_scale = original_size[0] / size[0], original_size[1] / size[1]
    boxes = detections.boxes * detections.boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])
    boxes = clip_boxes_to_image(boxes, original_size)
    with torch.autocast(boxes.device.type, enabled=False):
        return boxes, paste_masks(detections.mask_probs, boxes, original_size, threshold)


def build_detector(config: DetectorConfig) -> Detector:
    """Builds the detector of ``config``, with randomly initialised weights."""
    from wsfvit.detection.model.backbone import DetectionBackbone

    return Detector(config, DetectionBackbone(config.backbone, **config.backbone_options))
