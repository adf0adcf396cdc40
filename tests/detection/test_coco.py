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
    ("annotation 1: its bbox None is not x, y, width, height; --boxes-from-masks", edit(bbox=None)),
    ("annotation 1: its bbox [] is not x, y, width, height; --boxes-from-masks", edit(bbox=[])),
    ("annotation 1: its segmentation is neither polygons nor RLE; --boxes-only", edit(segmentation=None)),
    ("annotation 1: its segmentation is neither polygons nor RLE; --boxes-only", edit(segmentation=[])),
    # x1, y1, x2, y2 of columns 3..6 and rows 4..8, as polygon and as RLE
    (
        "annotation 1: its bbox [3, 4, 7, 9] is x1, y1, x2, y2 of its mask",
        edit(bbox=[3, 4, 7, 9], segmentation=[[3, 4, 7, 4, 7, 9, 3, 9]]),
    ),
    (
        "annotation 1: its bbox [8, 0, 10, 10] is x1, y1, x2, y2 of its mask",
        edit(bbox=[8, 0, 10, 10], segmentation={"size": [10, 20], "counts": [80, 20, 100]}),
    ),
    # the centre, and parts of the image's sides
    (
        "annotation 1: its bbox [8, 5, 10, 8] holds less than half",
        edit(bbox=[8, 5, 10, 8], segmentation=[[3, 1, 13, 1, 13, 9, 3, 9]]),
    ),
    (
        "annotation 1: its bbox [0.5, 0.2, 0.4, 0.5] holds less than half",
        edit(bbox=[0.5, 0.2, 0.4, 0.5], segmentation=[[10, 2, 18, 2, 18, 7, 10, 7]]),
    ),
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


def test_training_counts_what_it_leaves_out_by_reason(tmp_path, caplog):
    def change(content):
        content["images"].append({"id": 5, "file_name": "b.png", "height": 30, "width": 40})
        content["annotations"].append({**content["annotations"][2], "id": 9, "area": 0})

    data = read_coco(*write_coco(tmp_path, change))
    data.for_training(min_side=11)
    assert "left out of training" in caplog.text
    expected = ("1 images smaller than 11 pixels", "2 objects in them", "1 crowds", "1 objects of area 0")
    for part in (*expected, "1 images without annotations"):
        assert caplog.text.count(part) == 1, part
    assert len(caplog.records) == 1


NOTHING_TO_LEARN = {
    "4 objects of area 0": lambda content: [entry.update(area=0, iscrowd=0) for entry in content["annotations"]],
    "2 images without annotations": lambda content: content["annotations"].clear(),
    "2 images smaller than 32 pixels": lambda content: None,
}


@pytest.mark.parametrize("reason", NOTHING_TO_LEARN)
def test_training_data_without_any_object_is_refused(reason, tmp_path):
    data = read_coco(*write_coco(tmp_path, NOTHING_TO_LEARN[reason]))
    with pytest.raises(UserError, match=f"no object to learn from .*{reason}"):
        data.for_training(min_side=32 if "32" in reason else 1)


def test_evaluation_without_any_object_is_said(tmp_path, caplog):
    data = read_coco(*write_coco(tmp_path, lambda content: content["annotations"].clear()))
    assert data.ground_truth()["annotations"] == [] and "has no object" in caplog.text


def test_sound_boxes_do_not_contradict_their_polygons(tmp_path):
    """Tight, larger than what is visible, clipped at the border, and rounded."""

    def change(content):
        template = content["annotations"][0]
        for number, (box, polygon) in enumerate(
            [
                ([2, 1, 4, 3], [2, 1, 6, 1, 6, 4, 2, 4]),
                ([0, 0, 20, 10], [2, 1, 6, 1, 6, 4, 2, 4]),
                ([15, 5, 5, 5], [15, 5, 24, 5, 24, 13, 15, 13]),
                ([3, 3, 1, 1], [3.6, 3.6, 4.9, 3.6, 4.9, 4.9]),
                ([0, 0, 6, 4], [0, 0, 6, 0, 6, 4, 0, 4]),
            ],
            start=10,
        ):
            content["annotations"].append({**template, "id": number, "bbox": box, "segmentation": [polygon]})

    assert read_coco(*write_coco(tmp_path, change)).problems == ()


def test_boxes_only_need_no_masks(tmp_path):
    def change(content):
        for entry in content["annotations"]:
            entry["segmentation"] = []
            entry.pop("area", None)

    data = read_coco(*write_coco(tmp_path, change), boxes_only=True)
    first = data.images[0].annotations[0]
    assert first["segmentation"] == [[2, 1, 6, 1, 6, 4, 2, 4]] and first["area"] == 12
    assert len(data.for_training(min_side=1).images) == 2


def test_boxes_from_masks_replace_missing_and_wrong_boxes(tmp_path):
    def change(content):
        for entry, box in zip(content["annotations"], (None, [], [7, 7, 1, 1], "none"), strict=True):
            entry["bbox"] = box

    data = read_coco(*write_coco(tmp_path, change), boxes_from_masks=True)
    boxes = [entry["bbox"] for image in data.images for entry in image.annotations]
    assert boxes == [[2, 1, 4, 3], [0, 0, 2, 10], [0, 0, 1, 5], [0, 0, 40, 30]]


def test_folder_and_file_are_compared(tmp_path, caplog):
    paths = write_coco(tmp_path)
    assert read_coco(*paths).problems == () and caplog.text == ""
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "c.PNG")
    (tmp_path / "images" / "notes.txt").touch()
    with pytest.raises(UserError, match="image 7: there is no file"):
        read_coco(*paths)
    assert len(caplog.records) == 1
    assert "1 images of the folder have no entry (such as c.PNG)" in caplog.text
    assert "1 entries have no image (such as a.png), with 2 annotations" in caplog.text


def test_one_process_speaks(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    read_coco(*write_coco(tmp_path, edit(category_id=4)), on_bad_annotation="skip")
    assert caplog.text == ""


def test_an_image_of_only_crowds_is_trained_on(tmp_path):
    data = read_coco(*write_coco(tmp_path, lambda content: content["annotations"].pop(2)))
    assert [len(image.annotations) for image in data.for_training(min_side=1).images] == [2, 0]


def test_ground_truth_holds_everything_that_was_checked(tmp_path):
    truth = read_coco(*write_coco(tmp_path, edit(category_id=4)), on_bad_annotation="skip").ground_truth()
    assert truth["images"][0] == {"id": 7, "height": 10, "width": 20}
    assert truth["categories"] == [{"id": 2, "name": "cat"}, {"id": 9, "name": "dog"}]
    assert [entry["id"] for entry in truth["annotations"]] == [0, 2, 3]
    assert json.loads(json.dumps(truth)) == truth
