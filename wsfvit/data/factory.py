"""Datasets by name: the built-in digits, and everything that ``timm.data.create_dataset`` reads."""

import os
from typing import Any

import timm.data
import torch.utils.data

from wsfvit.data.digits import Digits
from wsfvit.data.images import ImageDataset, describe
from wsfvit.errors import UserError

Dataset = torch.utils.data.Dataset[Any]
STREAMING_PREFIXES = ("hfids/", "tfds/", "wds/")


def create_dataset(
    name: str,
    root: str | None,
    split: str,
    in_chans: int = 3,
    is_training: bool = False,
    batch_size: int = 1,
    seed: int = 42,
    num_samples: int | None = None,
    input_img_mode: str | None = None,
    **reader_options: Any,
) -> Dataset:
    """Creates a dataset of (image, label).

    Args:
        name: ``digits``, or timm's: empty for an image folder or tar, ``hfds/PATH``, ``torch/NAME``, ...
        root: Data folder; for ``hfds/`` the cache folder; unused by ``digits``.
        split: Split name, e.g. ``train``, ``validation`` or, for ``hfds/``, a slice such as ``train[:1000]``.
        in_chans: Chooses grey or RGB images where ``input_img_mode`` does not.
        is_training: Lets streaming datasets shuffle.
        batch_size: Batch size that streaming datasets pad their last batch to.
        seed: Shuffle seed of streaming datasets.
        num_samples: Number of samples of a streaming dataset.
        input_img_mode: PIL mode that images are converted to.
        **reader_options: timm's ``class_map``, ``input_key``, ``target_key`` and ``download``; unset ones are dropped.

    Raises:
        UserError: the data is not there, or the name, split or an option does not fit it.
    """
    options = {key: value for key, value in reader_options.items() if value}
    if num_samples is not None and not name.lower().startswith(STREAMING_PREFIXES):
        streaming = ", ".join(STREAMING_PREFIXES)
        raise UserError(f"a sample count is for streaming datasets ({streaming}), not for '{name or root}'")
    if name == "digits":
        if input_img_mode:
            options["input_img_mode"] = input_img_mode
        if options:
            raise UserError(f"the digits dataset has no use for {', '.join(options)}")
        return Digits(split, in_chans)
    if "/" not in name:
        if not root:
            raise UserError(
                "no data given: pass a folder (train.py DATA ...), or --dataset digits for the built-in digits"
            )
        if not os.path.exists(root):
            raise UserError(f"the data folder '{root}' does not exist")
    try:
        dataset: Dataset = timm.data.create_dataset(
            name,
            root=root,
            split=split,
            is_training=is_training,
            batch_size=batch_size,
            seed=seed,
            num_samples=num_samples,
            input_img_mode=input_img_mode or ("L" if in_chans == 1 else "RGB"),
            **options,
        )
    # timm and the readers behind it report a wrong name, split, key or folder through any of these.
    except (AssertionError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as err:
        shown = name or root
        raise UserError(f"dataset '{shown}', split '{split}': {describe(err)}") from err
    if isinstance(dataset, timm.data.ImageDataset):
        return ImageDataset(dataset.reader, dataset.input_img_mode)
    return dataset


def dataset_num_classes(dataset: Dataset) -> int | None:
    """Number of classes that the dataset's labels run over, or None where it does not say."""
    for holder in (dataset, getattr(dataset, "reader", None)):
        classes = getattr(holder, "class_to_idx", None)
        if classes:
            return len(classes)
    return None
