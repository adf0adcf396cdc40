"""Object detection: Mask R-CNN and Cascade Mask R-CNN on torchvision's operators, over any timm backbone."""
