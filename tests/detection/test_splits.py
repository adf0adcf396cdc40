"""Layouts of a data folder, and the errors where its files are missing."""

import pytest

from wsfvit.detection.data.coco import CocoData, check_categories, read_split
from wsfvit.detection.shapes import write_shapes
from wsfvit.utils.errors import UserError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return folder, *write_shapes(folder, count=2, size=(32, 32))


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val.json", "images/val2017"),
        ("instances_val.json", "images"),
        ("val/instances.json", "val/images"),
    ],
)
def test_layouts_that_are_found(tmp_path, written, annotations, images):
    _, file, folder = written
    for source, name in ((file, annotations), (folder, images)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(source)
    data = read_split(str(tmp_path), "val", None, None, "raise")
    assert len(data.images) == 2 and data.images[0].path.parent == tmp_path / images


def test_named_files_win_over_the_folder(tmp_path, written):
    _, file, folder = written
    assert len(read_split(str(tmp_path), "train", str(folder), str(file), "raise").images) == 2


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (None, "no data for 'train'.*--train-annotations FILE"),
        ("nowhere", "'nowhere' does not exist"),
        (".", "none of annotations/instances_train2017.json.*--train-annotations FILE"),
    ],
)
def test_missing_data_says_which_flag_names_it(root, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected):
        read_split(root, "train", None, None, "raise", flags="train-")


def test_other_categories_are_refused():
    data = CocoData({1: "cat", 2: "dog"}, ())
    check_categories(data, {1: "cat", 2: "dog"}, "the checkpoint")
    with pytest.raises(UserError, match="category 2 is 'dog' in this data and 'horse' in the checkpoint"):
        check_categories(data, {1: "cat", 2: "horse"}, "the checkpoint")
    with pytest.raises(UserError, match="category 3 is 'none' in this data and 'fox' in the checkpoint"):
        check_categories(data, {1: "cat", 2: "dog", 3: "fox"}, "the checkpoint")
