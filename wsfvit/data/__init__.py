"""Datasets on top of ``timm.data``, their loaders, and the seeding that makes training repeatable."""

from wsfvit.data.factory import create_dataset, dataset_class_names, dataset_notes, dataset_num_classes, same_images
from wsfvit.data.labels import check_labels
from wsfvit.data.loader import EvalLoader, LoaderOptions, TrainLoader, build_eval_loader, build_train_loader
from wsfvit.data.sampling import EvalSampler, TrainSampler
from wsfvit.data.seeding import SeededDataset, seed_all
from wsfvit.data.transforms import Augmentation

__all__ = [
    "Augmentation",
    "EvalLoader",
    "EvalSampler",
    "LoaderOptions",
    "SeededDataset",
    "TrainLoader",
    "TrainSampler",
    "build_eval_loader",
    "build_train_loader",
    "check_labels",
    "create_dataset",
    "dataset_class_names",
    "dataset_notes",
    "dataset_num_classes",
    "same_images",
    "seed_all",
]
