"""Object detection and instance segmentation: Mask R-CNN and Cascade Mask R-CNN on any timm backbone."""

from wsfvit.detection.model.config import DetectorConfig, cascade_mask_rcnn_config, mask_rcnn_config
from wsfvit.detection.model.detector import build_detector

__all__ = ["DetectorConfig", "build_detector", "cascade_mask_rcnn_config", "mask_rcnn_config"]
