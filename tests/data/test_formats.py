"""Every format by its --dataset name, written here and read through both loaders."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from wsfvit.data import (
    Augmentation,
    LoaderOptions,
    build_eval_loader,
    build_train_loader,
    create_dataset,
    dataset_num_classes,
)
from wsfvit.utils.errors import UserError

CONFIG = {"input_size": (3, 16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3}
OPTIONS = LoaderOptions(batch_size=4, num_workers=0)
# Leaves the one grey value of each picture alone.
PLAIN = Augmentation(color_jitter=0.0, interpolation="bilinear")
# Twelve images of one grey value each; the value tells which image it is, and its third is the label.
VALUES = range(0, 240, 20)
LABELS = [index % 3 for index in range(12)]


def picture(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_folder(root, split):
    for value, label in zip(VALUES, LABELS, strict=True):
        folder = root / split / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{value:03}.png").write_bytes(picture(value))
    return "", str(root)


def write_tar(root, split):
    with tarfile.open(root / "images.tar", "w") as archive:
        for value, label in zip(VALUES, LABELS, strict=True):
            add(archive, f"class{label}/{value:03}.png", picture(value))
    return "", str(root / "images.tar")


def write_nested_tar(root, split):
    """One tar file per class inside a tar file."""
    with tarfile.open(root / "images.tar", "w") as archive:
        for label in range(3):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for value in VALUES[label::3]:
                    add(inner, f"{value:03}.png", picture(value))
            add(archive, f"class{label}.tar", buffer.getvalue())
    return "", str(root / "images.tar")


def write_parquet(root, split):
    datasets = pytest.importorskip("datasets", reason="not installed: pip install 'wsfvit[data]'")
    datasets.disable_progress_bars()
    names = ["class0", "class1", "class2"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    images = [{"bytes": picture(value), "path": None} for value in VALUES]
    table = datasets.Dataset.from_dict({"image": images, "label": LABELS}, features=features)
    (root / "pets").mkdir()
    table.to_parquet(str(root / "pets" / f"{split}.parquet"))
    return f"hfds/{root / 'pets'}", str(root / "cache")


MAP_STYLE = {"folder": write_folder, "tar": write_tar, "nested tar": write_nested_tar, "hfds": write_parquet}


def seen(batches):
    """Sorted (grey value, label) of all images."""
    pairs = []
    for images, labels in batches:
        flat = (images * 255).round().flatten(1)
        assert images.shape[1:] == (3, 16, 16) and (flat == flat[:, :1]).all()
        pairs += zip(flat[:, 0].int().tolist(), labels.tolist(), strict=True)
    return sorted(pairs)


EXPECTED = list(zip(VALUES, LABELS, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", MAP_STYLE)
def test_map_style(tmp_path, monkeypatch, kind, num_workers):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name, root = MAP_STYLE[kind](tmp_path, "train")
    dataset = create_dataset(name, root, "train")
    assert dataset_num_classes(dataset) == 3 and len(dataset) == 12
    assert dataset[0][0].size == (24, 20)  # in the main process, before the workers start
    options = replace(OPTIONS, num_workers=num_workers)
    assert seen(build_eval_loader(dataset, CONFIG, options)) == EXPECTED
    train = build_train_loader(dataset, CONFIG, options, PLAIN)
    assert seen(train) == EXPECTED
    first = [labels.tolist() for _, labels in train]
    train.set_position(1)
    assert seen(train) == EXPECTED and [labels.tolist() for _, labels in train] != first


def test_timms_own_loader_reads_our_datasets(tmp_path):
    from timm.data import create_loader

    dataset = create_dataset(*write_folder(tmp_path, "train"), "train")
    loader = create_loader(dataset, batch_size=5, num_workers=0, device=torch.device("cpu"), **CONFIG)
    assert seen(loader) == EXPECTED


@pytest.fixture
def shards(tmp_path):
    """Four WebDataset shards of three images, with timm's _info.json."""
    pytest.importorskip("webdataset", reason="not installed: pip install 'wsfvit[data]'")
    names = [f"pets-train-{number:04}.tar" for number in range(4)]
    for number, name in enumerate(names):
        with tarfile.open(tmp_path / name, "w") as archive:
            for index in range(number * 3, number * 3 + 3):
                add(archive, f"{index:06}.png", picture(VALUES[index]))
                add(archive, f"{index:06}.cls", str(LABELS[index]).encode())
    split = {"name": "train", "num_samples": 12, "filenames": names, "shard_lengths": [3] * 4}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    return tmp_path


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


def build_shard_loader(root, num_workers, **mode):
    dataset = create_dataset("wds/", str(root), "train", **mode)
    options = replace(OPTIONS, num_workers=num_workers, batch_size=mode.get("batch_size", 4))
    if mode.get("is_training"):
        return build_train_loader(dataset, CONFIG, options, PLAIN)
    return build_eval_loader(dataset, CONFIG, options)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_shards_are_evaluated_once(shards, num_workers):
    loader = build_shard_loader(shards, num_workers)
    assert seen(loader) == seen(loader) == EXPECTED
    assert len(loader) == 3


@pytest.mark.parametrize("num_workers", [1, 2])
def test_shards_in_training(shards, num_workers):
    """Equal (seed, epoch) give the same batches, also from the middle of an epoch; other epochs give others."""

    def start():
        return build_shard_loader(shards, num_workers, is_training=True, batch_size=2)

    loader = start()
    epochs = []
    for epoch in range(2):
        loader.set_position(epoch)
        epochs.append([(images.clone(), labels) for images, labels in loader])
        assert len(epochs[-1]) == len(loader) == 6
    assert seen(epochs[0]) == EXPECTED
    assert labels_of(epochs[0]) != labels_of(epochs[1])
    resumed = start()
    resumed.set_position(1, 2)
    for (images, labels), (expected_images, expected_labels) in zip(resumed, epochs[1][2:], strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_samples", "12", "no integers from 0"),
        ("num_samples", 10**26, "no integers from 0"),
        ("shard_lengths", [3, -3], "no integers from 0"),
        ("filenames", [1], "names that are no text"),
        ("name", 7, "names that are no text"),
        ("filenames", None, "TypeError"),
    ],
)
def test_wrong_indices_of_shards_are_refused(shards, key, value, expected):
    file = shards / "_info.json"
    content = json.loads(file.read_text())
    content["splits"]["train"][key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=expected):
        create_dataset("wds/", str(shards), "train")
    file.write_text(json.dumps({"splits": [content]}))
    with pytest.raises(UserError, match="dataset 'wds/', split 'train'"):
        create_dataset("wds/", str(shards), "train")


def test_shards_without_a_count(shards):
    (shards / "_info.json").unlink()
    split = "pets-train-{0000..0003}.tar"
    with pytest.raises(UserError, match="num_samples not specified"):
        create_dataset("wds/", str(shards), split, is_training=True)
    with pytest.raises(UserError, match="does not know its size: pass --train-num-samples or --val-num-samples"):
        build_eval_loader(create_dataset("wds/", str(shards), split), CONFIG, OPTIONS)
    for dataset in (
        create_dataset("wds/", str(shards), split, num_samples=12),
        create_dataset("wds/", str(shards), f"{split}|12"),
    ):
        assert seen(build_eval_loader(dataset, CONFIG, OPTIONS)) == EXPECTED


def test_bad_images_in_tar_files_are_named(tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        add(archive, "a/1.png", picture(0))
        add(archive, "b/2.png", picture(0)[:50])
    with pytest.raises(UserError, match=r"images.tar:b/2.png' \(index 1\): "):
        create_dataset("", str(tmp_path / "images.tar"), "train")[1]


def test_streams_have_no_repeats(shards):
    dataset = create_dataset("wds/", str(shards), "train", is_training=True, batch_size=2)
    with pytest.raises(UserError, match="repeated augmentation needs random access"):
        build_train_loader(dataset, CONFIG, OPTIONS, repeats=2)


def test_parquet_as_a_stream(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name, root = write_parquet(tmp_path, "train")
    dataset = create_dataset(name.replace("hfds/", "hfids/"), root, "train", num_samples=12)
    assert seen(build_eval_loader(dataset, CONFIG, OPTIONS)) == EXPECTED
    dataset = create_dataset(
        name.replace("hfds/", "hfids/"), root, "train", num_samples=12, is_training=True, batch_size=4
    )
    loader = build_train_loader(dataset, CONFIG, OPTIONS, PLAIN)
    assert seen(loader) == EXPECTED


def test_synthetic_needs_no_files():
    dataset = create_dataset("synthetic", None, "train", num_samples=9, num_classes=4)
    assert len(dataset) == 9 and dataset_num_classes(dataset) == 4
    image, label = dataset[6]
    assert (image.size, image.mode, label) == ((256, 256), "RGB", 2)
    assert np.asarray(image).std() > 10
    again = create_dataset("synthetic/4", None, "train", num_samples=9)
    assert all(one.tobytes() == other.tobytes() for (one, _), (other, _) in zip(dataset, again, strict=True))
    assert len({image.tobytes() for image, _ in dataset}) == 9
    assert dataset[6][0].tobytes() != create_dataset("synthetic", None, "validation", num_classes=4)[6][0].tobytes()


def test_synthetic_defaults_and_channels():
    dataset = create_dataset("synthetic", None, "validation", in_chans=1)
    assert (len(dataset), dataset_num_classes(dataset), dataset[1023][0].mode) == (1024, 1000, "L")
    with pytest.raises(UserError, match="synthetic/10 for images of 10 classes"):
        create_dataset("synthetic/many", None, "train")
    with pytest.raises(UserError, match="no use for class_map"):
        create_dataset("synthetic", None, "train", class_map="map.txt")


def test_synthetic_through_both_loaders():
    dataset = create_dataset("synthetic/3", None, "train", num_samples=12)
    for build in (build_train_loader, build_eval_loader):
        assert sum((labels.tolist() for _, labels in build(dataset, CONFIG, OPTIONS)), []).count(2) == 4


@pytest.mark.parametrize("in_chans", [1, 3])
def test_torchvision_data_follows_the_channels(tmp_path, in_chans):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        pixels = bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes([9]) * (4 * 28 * 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(pixels)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 2, 3]))
    config = {"input_size": (in_chans, 16, 16), "mean": (0.0,) * in_chans, "std": (1.0,) * in_chans}
    for build, split in ((build_train_loader, "train"), (build_eval_loader, "validation")):
        dataset = create_dataset("torch/mnist", str(tmp_path), split, in_chans=in_chans)
        ((images, labels),) = list(build(dataset, config, OPTIONS))
        assert images.shape == (4, in_chans, 16, 16) and sorted(labels.tolist()) == [0, 1, 2, 3]
