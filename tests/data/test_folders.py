"""What a data folder holds against what is read of it: splits, files, class maps and labels, each named or refused."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from wsfvit.cli.train import parse_train_args
from wsfvit.cli.validate import parse_validate_args
from wsfvit.data import (
    LoaderOptions,
    build_eval_loader,
    build_train_loader,
    check_labels,
    create_dataset,
    dataset_class_names,
    dataset_notes,
    same_images,
)
from wsfvit.data.image_files import find_images
from wsfvit.eval.evaluate import read_valid_labels
from wsfvit.eval.jobs import list_jobs
from wsfvit.eval.validate import run_validation
from wsfvit.train.classify import run_training
from wsfvit.utils.errors import UserError

CONFIG = {"input_size": (3, 16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3}
NAMES = ("cat", "dog", "frog")
TINY = ["--model", "test_resnet", "--num-classes", "3", "--img-size", "32", "--device", "cpu", "-j", "0", "-b", "3"]


def encode(suffix=".png"):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 20, 50)).save(buffer, Image.registered_extensions()[suffix])
    return buffer.getvalue()


def fill(root, *paths):
    """Write an image at each path; returns the root as text."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encode(path[path.rindex(".") :]))
    return str(root)


def pets(root, splits=("train", "val"), names=NAMES, count=2):
    return fill(root, *(f"{split}/{name}/{index}.png" for split in splits for name in names for index in range(count)))


def train(root, *more):
    argv = [str(root), *TINY, "--epochs", "1", "--warmup-epochs", "0", "--no-tensorboard", *map(str, more)]
    return run_training(parse_train_args(argv))


# --- files ---


def test_every_format_of_pillow_is_an_image(tmp_path):
    paths = [f"train/cat/{index}{suffix}" for index, suffix in enumerate((".webp", ".bmp", ".tif", ".gif", ".PNG"))]
    root = fill(tmp_path, *paths[:4], "train/dog/0.jp2")
    (tmp_path / paths[4]).write_bytes(encode())
    dataset = create_dataset("", root, "train")
    assert len(dataset) == 6 and not dataset_notes(dataset)
    assert all(image.size == (16, 16) for image, _ in dataset)


def test_what_is_left_out_is_counted_with_an_example(tmp_path):
    root = pets(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("")
    (tmp_path / "train" / "cat" / "b.npz").write_text("")
    (tmp_path / "train" / "dog" / "a.npz").write_text("")
    (tmp_path / "train" / ".DS_Store").write_text("")
    fill(tmp_path, "train/.ipynb_checkpoints/0-checkpoint.png", "train/dog/._0.png")
    dataset = create_dataset("", root, "train")
    assert dataset_class_names(dataset) == list(NAMES)
    left_out = (
        "2 .npz (e.g. cat/b.npz), 1 .txt (e.g. cat/notes.txt), 2 hidden (e.g. .ipynb_checkpoints/0-checkpoint.png)"
    )
    assert dataset_notes(dataset) == [f"'{root}/train': 6 images are used, left out: {left_out}"]


def test_both_commands_print_what_is_left_out(tmp_path, capsys):
    root = pets(tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "cat" / "notes.txt").write_text("")
    train(root, "--output", tmp_path, "--experiment", "run")
    out = capsys.readouterr().out
    assert out.count("left out: 1 .txt (e.g. cat/notes.txt)") == 2
    run_validation(
        parse_validate_args([root, "--device", "cpu", "-j", "0", "--checkpoint", f"{tmp_path}/run/last.pth.tar"])
    )
    assert f"note: '{root}/val': 6 images are used, left out: 1 .txt" in capsys.readouterr().out


def test_names_that_differ_in_case_or_zeros_have_one_order(tmp_path):
    """The natural order does not tell them apart, and that of a set is another in every process."""
    names = ["Cat", "cat", "1", "01", "001"]
    root = fill(tmp_path, *(f"{name}/0.png" for name in names))
    assert dataset_class_names(create_dataset("", root, "train")) == ["001", "01", "1", "Cat", "cat"]


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("train.parquet", "hfds/{root}"),
        ("data/x.arrow", "hfds/{root}"),
        ("x-{000}.tar", "wds/"),
        ("a.zip", "one folder"),
    ],
)
def test_a_folder_for_another_reader_names_it(tmp_path, name, reader):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="holds no images, only 1 ") as caught:
        create_dataset("", str(tmp_path), "train")
    assert reader.format(root=tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["val/0.png", "val/1.png"], "2 images in .*val' are in no class folder .e.g. 0.png.: move them"),
        (["val/cat/0.png", "val/dog/0.png", "val/x.png"], "1 images in .*val' are in no class folder"),
        (["val/cat/0.png", "val/cat/more/0.png", "val/dog/0.png"], "cat' holds both images and folders of images"),
        (["pets/train/cat/0.png", "pets/val/cat/0.png"], "holds several splits"),
    ],
)
def test_images_whose_class_is_not_clear_are_refused(tmp_path, paths, expected):
    with pytest.raises(UserError, match=expected):
        create_dataset("", fill(tmp_path, *paths), "validation")


def test_folders_of_one_name_are_joined_with_a_note(tmp_path):
    dataset = create_dataset("", fill(tmp_path, "a/cat/0.png", "b/cat/0.png", "b/dog/0.png"), "train")
    assert [label for _, label in dataset] == [0, 0, 1]
    assert dataset_notes(dataset) == [f"'{tmp_path}': 3 folders are joined to 2 classes by their last name"]


def write_tar(path, *names):
    with tarfile.open(path, "w") as archive:
        for name in names:
            content = encode(name[name.rindex(".") :]) if not name.endswith(".txt") else b"x"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def test_tar_files_are_compared_as_folders_are(tmp_path):
    names = ["./cat/0.webp", "./dog/1.png", "./dog/notes.txt", "./.ipynb_checkpoints/0.png"]
    root = write_tar(tmp_path / "x.tar", *names)
    dataset = create_dataset("", root, "train")
    assert [(image.size, label) for image, label in dataset] == [((16, 16), 0), ((16, 16), 1)]
    assert dataset_notes(dataset)[0].endswith("1 .txt (e.g. dog/notes.txt), 1 hidden (e.g. .ipynb_checkpoints/0.png)")
    (tmp_path / "m.txt").write_text("cat\ndgo\n")
    with pytest.raises(UserError, match="does not name the folders dog, and there are no folders dgo"):
        create_dataset("", root, "train", class_map=str(tmp_path / "m.txt"))
    with pytest.raises(UserError, match="is a single split, not 'nonsense'"):
        create_dataset("", root, "nonsense")
    with pytest.raises(UserError, match="2 images in .* are in no class folder"):
        create_dataset("", write_tar(tmp_path / "y.tar", "0.png", "1.png"), "train")
    (tmp_path / "z.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(UserError, match="z.tar' cannot be read"):
        create_dataset("", str(tmp_path / "z.tar"), "train")


# --- class maps and text files ---


@pytest.mark.parametrize("text", [b"\xef\xbb\xbffrog\r\ncat\r\ndog\r\n", b"frog\ncat\ndog", b"frog \ncat\ndog\n\n\n"])
def test_class_map_of_any_line_end_and_byte_order_mark(tmp_path, text):
    (tmp_path / "m.txt").write_bytes(text)
    dataset = create_dataset("", pets(tmp_path), "train", class_map=str(tmp_path / "m.txt"))
    assert len(dataset) == 6 and dataset_class_names(dataset) == ["frog", "cat", "dog"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat\ndgo\nfrog\n", "does not name the folders dog, and there are no folders dgo; correct the names"),
        ("cat\nfrog\n", "does not name the folders dog;"),
        ("cat\ndog\nfrog\nbird\n", "there are no folders bird;"),
        ("cat\n\ndog\nfrog\n", "a line is empty or repeated"),
        ("cat\ndog\nfrog\ncat\n", "a line is empty or repeated"),
    ],
)
def test_class_map_that_differs_from_the_folders(tmp_path, text, expected):
    (tmp_path / "m.txt").write_text(text)
    with pytest.raises(UserError, match=expected):
        create_dataset("", pets(tmp_path), "train", class_map=str(tmp_path / "m.txt"))


def test_class_map_that_cannot_be_read(tmp_path):
    root = pets(tmp_path)
    (tmp_path / "m.txt").write_bytes(b"\xff\xfe\x00c")
    (tmp_path / "m.pkl").write_bytes(b"no pickle")
    for name, expected in (("m.txt", "decode"), ("m.pkl", "m.pkl"), ("none.txt", "does not exist")):
        with pytest.raises(UserError, match=f"--class-map .*{expected}"):
            create_dataset("", root, "train", class_map=str(tmp_path / name))
    with pytest.raises(UserError, match="--class-map is not for 'torch/mnist'"):
        create_dataset("torch/mnist", root, "train", class_map="m.txt")


@pytest.mark.parametrize("label", [-1, 1.0, "1", None, True])
def test_labels_of_a_class_map_are_checked(tmp_path, label):
    import pickle

    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"cat": 0, "dog": label, "frog": 2}))
    with pytest.raises(UserError, match="class 'dog' has label"):
        create_dataset("", pets(tmp_path), "train", class_map=str(tmp_path / "m.pkl"))


def test_other_text_files_have_byte_order_marks_too(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"\xef\xbb\xbf0\r\n2\r\n")
    assert read_valid_labels(str(tmp_path / "v.txt"), 3) == [0, 2]
    (tmp_path / "models.txt").write_bytes(b"\xef\xbb\xbftest_vit\r\n")
    assert list_jobs(str(tmp_path / "models.txt"), "")[1][0].model == "test_vit"


# --- splits ---


@pytest.mark.parametrize("split", ["nonsense", "trian", "val", "test", "train[:1]", "."])
def test_a_named_split_must_exist_in_undivided_data(tmp_path, split):
    root = fill(tmp_path, "cat/0.png", "dog/0.png")
    with pytest.raises(UserError, match="has no folder for split .*, only cat, dog: add it, or name another split"):
        create_dataset("", root, split)
    assert all(len(create_dataset("", root, default)) == 2 for default in ("train", "validation"))


def test_splits_have_any_case(tmp_path):
    root = fill(tmp_path, "Train/cat/0.png", "VAL/cat/0.png", "VAL/dog/0.png", "other/x/0.png")
    assert [len(create_dataset("", root, split)) for split in ("train", "validation", "val", "other")] == [1, 2, 2, 1]
    with pytest.raises(UserError, match="split 'test', only Train, VAL, other"):
        create_dataset("", root, "test")


def test_two_folders_for_a_split_must_be_told_apart(tmp_path):
    root = fill(tmp_path, "train/cat/0.png", "val/cat/0.png", "valid/cat/0.png", "valid/cat/1.png")
    with pytest.raises(UserError, match="has val and valid for split 'validation': name one"):
        create_dataset("", root, "validation")
    assert [len(create_dataset("", root, split)) for split in ("val", "valid")] == [1, 2]


def test_the_folder_of_a_split_is_that_split(tmp_path):
    root = pets(tmp_path)
    assert len(create_dataset("", f"{root}/val", "val")) == 6
    with pytest.raises(UserError, match="no folder for split 'test'"):
        create_dataset("", f"{root}/val", "test")


def test_no_split_contains_another(tmp_path):
    root = fill(tmp_path / "data", "cat/0.png", "dog/0.png", "holdout/cat/1.png", "holdout/dog/1.png")
    sets = [create_dataset("", root, split) for split in ("train", "holdout")]
    with pytest.raises(UserError, match="one split contains the other"):
        same_images(*sets)
    with pytest.raises(UserError, match="one split contains the other"):
        train(root, "--num-classes", "2", "-b", "2", "--val-split", "holdout", "--output", tmp_path / "out")


@pytest.mark.parametrize("name", ["synthetic", "digits", "torch/cifar10", "torch/mnist"])
def test_other_datasets_have_named_splits(tmp_path, name):
    with pytest.raises(UserError, match="no split 'trian': use train or validation"):
        create_dataset(name, str(tmp_path), "trian")


def test_torchvision_folders(tmp_path):
    root = pets(tmp_path)
    with pytest.raises(UserError, match="has no folder for split 'trian'"):
        create_dataset("torch/image_folder", root, "trian")
    assert len(create_dataset("torch/image_folder", root, "train")) == 6
    (tmp_path / "train" / ".cache").mkdir()
    with pytest.raises(UserError, match=r"holds \.cache, which"):
        create_dataset("torch/image_folder", root, "train")


# --- labels ---


def test_classes_unknown_to_the_checkpoint_are_refused(tmp_path, capsys):
    pets(tmp_path / "pets")
    fruit = pets(tmp_path / "fruit", names=("apple", "banana"))
    train(tmp_path / "pets", "--output", tmp_path, "--experiment", "run")
    argv = [fruit, "--device", "cpu", "-j", "0", "--checkpoint", f"{tmp_path}/run/last.pth.tar"]
    with pytest.raises(UserError, match=r"class 'apple' has label 0 .* none in checkpoint.*pass --labels-by-position"):
        run_validation(parse_validate_args(argv))
    (row,) = run_validation(parse_validate_args([*argv, "--labels-by-position"]))
    assert row["images"] == 4
    with pytest.raises(UserError, match="it trained other classes than this data has"):
        train(pets(tmp_path / "fruit3", names=("a", "b", "c")), "--resume", f"{tmp_path}/run/last.pth.tar")


def test_classes_unknown_to_the_training_data_are_refused(tmp_path):
    fill(tmp_path, *(f"train/{name}/0.png" for name in NAMES), "val/apple/0.png")
    with pytest.raises(UserError, match="class 'apple' has label 0 in this data and none in the training data"):
        train(tmp_path, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, -1], "label -1, expected 0 to 2"), ([0, 3], "label 3, expected"), ([0.5, 1.0], "not an integer")]
    + [(["cat", "dog"], "label 'cat', which is not an integer: .*--class-map"), ([0, None], "label None")],
)
def test_parquet_labels_are_checked_before_the_first_step(tmp_path, monkeypatch, labels, expected):
    datasets = pytest.importorskip("datasets", reason="not installed: pip install 'wsfvit[data]'")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()
    features = {
        "image": datasets.Image(),
        "label": datasets.Value({float: "float32", str: "string"}.get(type(labels[0]), "int64")),
    }
    table = {"image": [{"bytes": encode(), "path": None}] * 2, "label": labels}
    (tmp_path / "pets").mkdir()
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(f"{tmp_path}/pets/train.parquet")
    more = {"class_map": ""}
    dataset = create_dataset(f"hfds/{tmp_path}/pets", str(tmp_path / "cache"), "train", **more)
    with pytest.raises(UserError, match=expected):
        check_labels(dataset, 3)
    if labels[0] == "cat":
        (tmp_path / "m.txt").write_bytes(b"\xef\xbb\xbfdog\r\ncat\r\n")
        more = {"class_map": str(tmp_path / "m.txt")}
        dataset = create_dataset(f"hfds/{tmp_path}/pets", str(tmp_path / "cache"), "train", **more)
        check_labels(dataset, 2)
        assert [label for _, label in dataset] == [1, 0]
        (tmp_path / "m.txt").write_text("dog\n")
        with pytest.raises(UserError, match="label 'cat' of column 'label' is not in --class-map"):
            check_labels(create_dataset(f"hfds/{tmp_path}/pets", str(tmp_path / "cache"), "train", **more), 2)
    dataset = create_dataset(f"hfds/{tmp_path}/pets", str(tmp_path / "cache"), "train", target_key="answer")
    with pytest.raises(UserError, match="no column 'answer', only image, label: pass --target-key"):
        check_labels(dataset, 3)


class Labelled:
    """Any dataset of one image and one label, which it may tell in advance as torchvision's do."""

    def __init__(self, label, known=True):
        self.label = label
        if known:
            self.targets = [label]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return Image.new("RGB", (16, 16)), self.label


class Stream(IterableDataset):
    transform = None

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 4

    def set_loader_cfg(self, num_workers):
        pass

    def set_epoch(self, epoch):
        pass

    def __iter__(self):
        for _ in range(4):
            yield self.transform(Image.new("RGB", (16, 16))), self.label


@pytest.mark.parametrize("label", [-1, 3, 1.0, "cat", None, [1]])
def test_labels_of_every_reader_are_checked(label):
    with pytest.raises(UserError, match="the data has label"):
        check_labels(Labelled(label), 3)
    for num_workers in (0, 1):
        options = LoaderOptions(batch_size=2, num_workers=num_workers, on_bad_image="skip", num_classes=3)
        for dataset in (Labelled(label, known=False), Stream(label)):
            for build in (build_eval_loader, build_train_loader):
                with pytest.raises(UserError, match="the data has label"):
                    list(build(dataset, CONFIG, options))


def test_integer_labels_of_any_type_pass():
    for label in (2, np.uint8(2), np.int64(2)):
        check_labels(Labelled(label), 3)
        options = LoaderOptions(batch_size=2, num_workers=0, num_classes=3)
        assert all((labels == 2).all() for _, labels in build_eval_loader(Labelled(label), CONFIG, options))
    check_labels(Labelled(torch.tensor(2)), 3)


def test_hidden_files_are_not_found(tmp_path):
    fill(tmp_path, "a.webp", "._a.png", ".ipynb_checkpoints/a.png", "b/c.png")
    assert find_images([tmp_path]) == [tmp_path / "a.webp", tmp_path / "b" / "c.png"]
