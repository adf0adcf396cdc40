"""A hand-made annotation file: two images, four objects, one of each form of mask."""

import copy
import json

from PIL import Image

# Image 7 is 20 wide and 10 high, image 3 is 40 wide and 30 high.
CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 10, "width": 20},
        {"id": 3, "file_name": "b.png", "height": 30, "width": 40},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        # columns 2..5, rows 1..3
        {"id": 0, "image_id": 7, "category_id": 9, "bbox": [2, 1, 4, 3], "segmentation": [[2, 1, 6, 1, 6, 4, 2, 4]]},
        # the first two columns
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 2, 10], "iscrowd": 0, "area": 20,
         "segmentation": {"size": [10, 20], "counts": [0, 20, 180]}},
        # rows 0..4 of column 0
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 0, 1, 5], "iscrowd": 0, "area": 5,
         "segmentation": {"size": [30, 40], "counts": "05[U1"}},
        {"id": 3, "image_id": 3, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1, "area": 1200,
         "segmentation": {"size": [30, 40], "counts": [0, 1200]}},
    ],
}  # fmt: skip


def write_coco(folder, change=None, images=True):
    """Writes the annotation file, after ``change(content)``, and its images; returns both paths."""
    content = copy.deepcopy(CONTENT)
    if change is not None:
        change(content)
    (folder / "images").mkdir()
    if images:
        for image, color in zip(CONTENT["images"], [(200, 10, 10), (10, 10, 200)], strict=True):
            Image.new("RGB", (image["width"], image["height"]), color).save(folder / "images" / image["file_name"])
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json", folder / "images"
