"""Data in COCO's format."""
