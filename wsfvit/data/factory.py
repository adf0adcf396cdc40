"""Datasets by name: the built-in ones, and those of ``timm.data.create_dataset``."""

import functools
import os
import re
import sys
import tarfile
from itertools import product
from typing import Any

import timm.data
import torch.utils.data

from wsfvit.data.decoders import DECODERS, convert_image, image_mode
from wsfvit.data.digits import TEST_SPLITS, TRAIN_SPLITS, Digits, Synthetic
from wsfvit.data.folders import FolderReader, TarReader, find_split
from wsfvit.data.image_files import EXTENSIONS
from wsfvit.data.images import ImageDataset, describe
from wsfvit.data.labels import read_class_map
from wsfvit.utils.errors import UserError

Dataset = torch.utils.data.Dataset[Any]
BUILT_IN = ("digits", "synthetic")
# Datasets of torchvision for which timm takes every other name than train for the test split.
TWO_SPLITS = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "qmnist")
# Datasets without random access, by timm's prefix.
STREAMING = ("hfids", "tfds", "wds")
# timm and its readers raise any of these for a wrong name, split, key, folder or index of shards.
READER_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
# A split or a slice of it, as Hugging Face datasets and TFDS name them.
_SLICE = re.compile(r"(?P<name>[^\[]+)(\[(?P<start>\d*)%?:(?P<stop>\d*)%?\])?")


def create_dataset(
    name: str,
    root: str | None,
    split: str,
    in_chans: int = 3,
    is_training: bool = False,
    batch_size: int = 1,
    seed: int = 42,
    num_samples: int | None = None,
    num_classes: int | None = None,
    input_img_mode: str | None = None,
    decoder: str = "pillow",
    **reader_options: Any,
) -> Dataset:
    """Create a dataset of (image, label).

    An image of a folder, a tar file or ``hfds/`` that cannot be read raises ``BadImageError``, which names it.

    Args:
        name: ``digits``, ``synthetic``, ``synthetic/CLASSES``, or timm's: empty for an image folder or tar,
            ``hfds/PATH``, ``wds/``, ``torch/NAME``, ...
        root: Data folder with a folder or tar file per split, or a single tar file for every split; for ``hfds/`` the
            cache folder; unused by the built-in datasets.
        split: Split name, e.g. ``train``, ``validation`` or, for ``hfds/``, a slice such as ``train[:1000]``.
        in_chans: Channels of the images; see ``image_mode``.
        is_training: Shuffle streaming datasets.
        batch_size: Batch size that streaming datasets pad their last batch to.
        seed: Shuffle seed of streaming datasets.
        num_samples: Number of samples of a streaming or synthetic dataset.
        num_classes: Number of classes of a synthetic dataset (default: 1000); ignored by others.
        input_img_mode: PIL mode that images are converted to.
        decoder: ``pillow``, or ``torchvision`` for image folders, tar files and ``hfds/``: colour JPEG files then come
            as uint8 tensors (3, H, W), see ``decode_image``.
        **reader_options: timm's ``class_map``, ``input_key``, ``target_key`` and ``download``; unset ones are dropped.

    Raises:
        UserError: The data is missing, or the name, split or an option does not fit it.
    """
    options = {key: value for key, value in reader_options.items() if value}
    kind = name.partition("/")[0].lower()
    if num_samples is not None and kind not in ("synthetic", *STREAMING):
        raise UserError(f"a sample count is for {', '.join(STREAMING)} and synthetic datasets, not '{name or root}'")
    if "/" not in name and kind not in BUILT_IN:
        _check_root(root)
    if decoder not in DECODERS:
        raise UserError(f"unknown decoder '{decoder}': use {' or '.join(DECODERS)}")
    if decoder != "pillow" and kind not in ("", "hfds"):
        raise UserError(f"the {decoder} decoder is for image folders, .tar files and hfds/, not for '{name}'")
    mode = "" if kind == "digits" else image_mode(in_chans, input_img_mode)
    if kind in BUILT_IN:
        if kind == "digits" and input_img_mode:
            options["input_img_mode"] = input_img_mode
        if options:
            raise UserError(f"the {kind} dataset has no use for {', '.join(options)}")
        return Digits(split, in_chans) if name == "digits" else _synthetic(name, split, num_samples, num_classes, mode)
    if class_map := options.pop("class_map", None):
        if kind == "torch":
            raise UserError(f"--class-map is not for '{name}', whose labels are fixed: leave it out")
        options["class_map"] = read_class_map(class_map, *([root] if root else []))
    if not name:
        return ImageDataset(_folder_reader(root or "", split, options), mode, decoder)
    if kind == "torch":
        root = _torch_root(name, root, split)
        options["transform"] = functools.partial(convert_image, mode=mode)
    streaming = {"is_training": is_training, "batch_size": batch_size, "seed": seed, "num_samples": num_samples}
    try:
        dataset: Dataset = timm.data.create_dataset(
            name, root=root, split=split, input_img_mode=mode, **streaming, **options
        )
        if kind == "wds":
            _check_shards(dataset)
    except READER_ERRORS as err:
        raise UserError(
            f"dataset '{name or root}', split '{split}': {describe(err)}".replace("download=True", "--dataset-download")
        ) from err
    return ImageDataset(dataset.reader, mode, decoder) if isinstance(dataset, timm.data.ImageDataset) else dataset


def dataset_num_classes(dataset: Dataset) -> int | None:
    """Number of classes of the dataset, or None if it has no class index."""
    return max(_class_to_index(dataset).values(), default=-1) + 1 or None


def dataset_class_names(dataset: Dataset) -> list[str] | None:
    """Class names in the order of the labels, or None if the dataset has no complete class index."""
    to_index = _class_to_index(dataset)
    # A class map can skip or repeat numbers.
    if not to_index or sorted(to_index.values()) != list(range(len(to_index))):
        return None
    return [str(name) for name in sorted(to_index, key=lambda name: to_index[name])]


def dataset_notes(dataset: Dataset) -> list[str]:
    """One line per difference between what a data folder holds and what the dataset uses."""
    return list(getattr(getattr(dataset, "reader", None), "notes", ()))


def same_images(dataset: Dataset, other: Dataset) -> bool:
    """Whether both are all images of the same folder or tar file.

    Raises:
        UserError: One is a folder inside the other's.
    """
    readers = [getattr(item, "reader", None) for item in (dataset, other)]
    roots = [os.path.realpath(reader.root) for reader in readers if isinstance(reader, FolderReader)]
    if len(roots) < 2:
        return False
    if roots[0] != roots[1] and os.path.commonpath(roots) in roots:
        both = " and ".join(sorted(roots))
        raise UserError(f"one split contains the other, {both}: divide the data into two folders")
    return roots[0] == roots[1]


def splits_overlap(split: str, other: str) -> bool:
    """Whether two splits of a dataset, such as ``train[:90%]`` and ``train[90%:]``, have images in common.

    False where the names do not tell: slices counted from the end, or one in images and one in percent.
    """
    return any(_overlap(*map(_SLICE.fullmatch, parts)) for parts in product(split.split("+"), other.split("+")))


def _overlap(one: re.Match[str] | None, other: re.Match[str] | None) -> bool:
    if one is None or other is None or one["name"] != other["name"]:
        return False
    bounds = [(int(part["start"] or 0), int(part["stop"] or sys.maxsize)) for part in (one, other)]
    sliced = [part for part, limits in zip((one, other), bounds, strict=True) if limits != (0, sys.maxsize)]
    if len(sliced) == 2 and ("%" in one[0]) != ("%" in other[0]):
        return False
    return max(start for start, _ in bounds) < min(stop for _, stop in bounds)


def _class_to_index(dataset: Dataset) -> dict[Any, int]:
    reader = getattr(dataset, "reader", None)
    return dict(getattr(dataset, "class_to_idx", None) or getattr(reader, "class_to_idx", None) or {})


def _synthetic(name: str, split: str, num_samples: int | None, num_classes: int | None, mode: str) -> Synthetic:
    if split not in TRAIN_SPLITS + TEST_SPLITS:
        raise UserError(f"the synthetic dataset has no split '{split}': use train or validation")
    classes = name.removeprefix("synthetic").removeprefix("/") or str(num_classes or 1000)
    if not classes.isdecimal() or not int(classes):
        raise UserError(f"unknown dataset '{name}': use digits, or synthetic/10 for images of 10 classes")
    return Synthetic(split, num_samples or 1024, int(classes), mode)


def _check_shards(dataset: Any) -> None:
    """Check what a reader of shards took from their ``_info.json``."""
    info, counts = dataset.reader.split_info, [dataset.reader.num_samples, *dataset.reader.split_info.shard_lengths]
    if not all(type(count) is int and 0 <= count <= sys.maxsize for count in counts):
        raise ValueError("numbers of samples that are no integers from 0")
    if not all(isinstance(text, str) for text in (info.name, info.alt_label, *info.filenames)):
        raise ValueError("names that are no text")


def _check_root(root: str | None) -> None:
    if not root:
        raise UserError("no data given: pass a folder (train.py DATA ...), or --dataset digits for the built-in digits")
    if not os.path.exists(root):
        raise UserError(f"the data folder '{root}' does not exist")


def _folder_reader(root: str, split: str, options: dict[str, Any]) -> FolderReader:
    """The reader of an image folder or .tar file; ``options`` are class_map and input_key, its file suffixes."""
    if "target_key" in options:
        raise UserError("--target-key is not for image folders, where the folder is the label: leave it out")
    source = find_split(root, split)
    types = {suffix.lower() for suffix in options.get("input_key", "").split(";") if suffix} or EXTENSIONS
    reader = TarReader if os.path.isfile(source) else FolderReader
    try:
        return reader(source, options.get("class_map"), types)
    except (OSError, tarfile.TarError) as err:
        raise UserError(f"'{source}' cannot be read: {describe(err)}") from err


def _torch_root(name: str, root: str | None, split: str) -> str | None:
    """The folder of a torchvision dataset; refuses split names that timm would take for another split."""
    kind = name.rpartition("/")[2].lower()
    if kind in ("image_folder", "folder"):
        root = find_split(root or "", split)
        if hidden := [entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name.startswith(".")]:
            raise UserError(f"'{root}' holds {hidden[0]}, which '{name}' takes for a class: leave --dataset out")
    elif kind in TWO_SPLITS and split not in TRAIN_SPLITS + TEST_SPLITS:
        raise UserError(f"dataset '{name}' has no split '{split}': use train or validation")
    return root
