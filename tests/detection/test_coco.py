"""COCO annotation files: what is read, what is refused by name, what training leaves out."""

import json
import logging

import pytest
from detection.coco_files import write_coco

from wsfvit.detection.data.coco import read_coco
from wsfvit.utils.errors import UserError


def test_reads_images_categories_and_annotations(tmp_path):
    data = read_coco(*write_coco(tmp_path))
    assert data.categories == {2: "cat", 9: "dog"} and list(data.categories.values()) == ["cat", "dog"]
    assert [(image.id, image.height, image.width) for image in data.images] == [(7, 10, 20), (3, 30, 40)]
    assert [entry["id"] for entry in data.images[0].annotations] == [0, 1]
    assert data.problems == ()
    filled = data.images[0].annotations[0]  # the file leaves its area and iscrowd out
    assert (filled["area"], filled["iscrowd"]) == (12, 0)


def edit_image(**values):
    return lambda content: content["images"][0].update(values)


def edit(**values):
    return lambda content: content["annotations"][1].update(values)


def rle(counts, size=(10, 20)):
    return edit(segmentation={"size": list(size), "counts": counts})


def append_image(content):
    content["images"].append({"id": 3, "file_name": "a.png", "height": 10, "width": 20})


PROBLEMS = [
    ("image 7: its height is 0", edit_image(height=0)),
    ("image 7: its width is '20'", edit_image(width="20")),
    ("image 7: it has no file_name", edit_image(file_name=None)),
    ("image 7: there is no file", edit_image(file_name="c.png")),
    ("image 3: its id is taken", append_image),
    ("annotation 1: there is no image 8", edit(image_id=8)),
    ("annotation 1: there is no image None", edit(image_id=None)),
    ("annotation 1: there is no image [7]", edit(image_id=[7])),
    ("annotation 1: there is no category 4", edit(category_id=4)),
    ("annotation 0: its id is taken", edit(id=0)),
    ("an annotation without an integer id: {'id': None", edit(id=None)),
    ("annotation 1: its bbox [0, 0, -2, 10] is not", edit(bbox=[0, 0, -2, 10])),
    ("annotation 1: its bbox [0, 0, 2] is not", edit(bbox=[0, 0, 2])),
    ("annotation 1: its bbox [0, 0, nan, 1] is not", edit(bbox=[0, 0, float("nan"), 1])),
    ("annotation 1: its bbox None is not", edit(bbox=None)),
    ("annotation 1: its bbox [21, 0, 2, 2] lies outside", edit(bbox=[21, 0, 2, 2])),
    ("annotation 1: its bbox [0, -5, 2, 2] lies outside", edit(bbox=[0, -5, 2, 2])),
    ("annotation 1: its iscrowd is 2", edit(iscrowd=2)),
    ("annotation 1: its area is -1", edit(area=-1)),
    ("annotation 1: its segmentation is neither", edit(segmentation=None)),
    ("annotation 1: its segmentation is neither", edit(segmentation=[])),
    ("annotation 1: a polygon is not a list", edit(segmentation=[[0, 0, 1, 1]])),
    ("annotation 1: a polygon is not a list", edit(segmentation=[[0, 0, 1, 1, 2, 2, 3]])),
    ("annotation 1: a polygon is not a list", edit(segmentation=[[0, 0, 1, 1, 2, float("inf")]])),
    ("annotation 1: a polygon is not a list", edit(segmentation=[[[0, 0], [1, 1, 2], 3, 4, 5, 6]])),
    ("annotation 1: a polygon is not a list", edit(segmentation=[0, 0, 1, 1, 2, 2])),
    ("annotation 1: a polygon lies far outside", edit(segmentation=[[0, 0, 1, 1, 2, 1e9]])),
    ("annotation 1: its RLE is of size [20, 10], the image of [10, 20]", rle([0, 200], (20, 10))),
    ("annotation 1: its RLE counts do not add up to 200", rle([0, 100])),
    ("annotation 1: its RLE counts do not add up to 200", rle([-1, 201])),
    ("annotation 1: its RLE counts are neither", rle([])),
    ("annotation 1: its RLE counts do not add up to 200", rle([2**62, 2**62, 2**62, 2**62, 200])),
    ("annotation 1: its RLE counts are neither", rle(None)),
    ("annotation 1: its RLE counts are neither", rle([0.5, 199.5])),
    ("annotation 1: its RLE counts are neither", rle("\x01")),
    ("annotation 1: its RLE counts are neither", rle("Z")),
    ("annotation 1: its RLE counts are neither", rle("oooooooo0")),
    ("annotation 1: its RLE counts do not add up to 200", rle("oooo0")),
]


@pytest.mark.parametrize(("problem", "change"), PROBLEMS)
def test_problems_are_named_and_refused_or_skipped(problem, change, tmp_path, caplog):
    paths = write_coco(tmp_path, change)
    with pytest.raises(UserError) as info:
        read_coco(*paths)
    assert problem in str(info.value) and "--on-bad-annotation skip" in str(info.value)
    with caplog.at_level(logging.WARNING):
        data = read_coco(*paths, on_bad_annotation="skip")
    assert len(data.problems) == 1 and problem in data.problems[0] and problem in caplog.text
    # The two annotations of a bad image go with it.
    left = 2 if "image 7:" in problem else 4 if "image 3" in problem else 3
    assert sum(len(image.annotations) for image in data.images) == left


def test_images_without_ids_and_what_refers_to_them(tmp_path):
    data = read_coco(*write_coco(tmp_path, edit_image(id="7")), on_bad_annotation="skip")
    assert "an image without an integer id: {'id': '7'" in data.problems[0]
    assert data.problems[1:] == ("annotation 0: there is no image 7", "annotation 1: there is no image 7")


def test_number_of_problems(tmp_path):
    def change(content):
        content["annotations"][0]["bbox"] = content["annotations"][2]["bbox"] = "none"

    with pytest.raises(UserError, match=r"has 2 problem\(s\), the first: annotation 0"):
        read_coco(*write_coco(tmp_path, change))


FILES = {
    "is not a JSON file": "{",
    "it has no list 'annotations'": json.dumps({"images": [], "categories": []}),
    "it has no list 'images'": "[]",
    "has no categories": json.dumps({"images": [], "annotations": [], "categories": []}),
    "the category {'id': 1} needs a name": json.dumps({"images": [], "annotations": [], "categories": [{"id": 1}]}),
    "names no image": json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}),
}


@pytest.mark.parametrize("message", FILES)
def test_files_that_are_not_annotation_files(message, tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(FILES[message])
    with pytest.raises(UserError) as info:
        read_coco(path, tmp_path, on_bad_annotation="skip")
    assert message in str(info.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read .*none.json.*No such file"):
        read_coco(tmp_path / "none.json", tmp_path)


def test_a_category_id_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs a name and a unique integer id"):
        read_coco(*write_coco(tmp_path, lambda content: content["categories"][0].update(id=2)))


def test_training_leaves_out_crowds_and_tiny_objects_and_images(tmp_path):
    def change(content):
        content["images"].append({"id": 5, "file_name": "b.png", "height": 30, "width": 40})  # without annotations
        template = content["annotations"][2]
        for number, values in enumerate(
            [{"bbox": [0, 0, 0.9, 5]}, {"bbox": [0, 0, 5, 0.9]}, {"area": 0}, {"bbox": [40, 0, 5, 5]}], start=10
        ):
            content["annotations"].append({**template, **values, "id": number})

    data = read_coco(*write_coco(tmp_path, change))
    assert {image.id: len(image.annotations) for image in data.images} == {7: 2, 3: 6, 5: 0}
    assert [image.id for image in data.for_training(min_side=11).images] == [3]
    assert [image.id for image in data.for_training(min_side=10, keep_empty=True).images] == [7, 3, 5]
    kept = data.for_training(min_side=10)
    assert [[entry["id"] for entry in image.annotations] for image in kept.images] == [[0, 1], [2]]


def test_an_image_of_only_crowds_is_trained_on(tmp_path):
    data = read_coco(*write_coco(tmp_path, lambda content: content["annotations"].pop(2)))
    assert [len(image.annotations) for image in data.for_training(min_side=1).images] == [2, 0]


def test_ground_truth_holds_everything_that_was_checked(tmp_path):
    truth = read_coco(*write_coco(tmp_path, edit(category_id=4)), on_bad_annotation="skip").ground_truth()
    assert truth["images"][0] == {"id": 7, "height": 10, "width": 20}
    assert truth["categories"] == [{"id": 2, "name": "cat"}, {"id": 9, "name": "dog"}]
    assert [entry["id"] for entry in truth["annotations"]] == [0, 2, 3]
    assert json.loads(json.dumps(truth)) == truth
