"""Datasets on top of ``timm.data``."""

from wsfvit.data.factory import create_dataset, dataset_num_classes

__all__ = ["create_dataset", "dataset_num_classes"]
