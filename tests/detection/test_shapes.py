"""Generated shapes: the same for equal seeds, with exact masks; and drawing detections."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from wsfvit.data.seeding import derive_seed
from wsfvit.detection.data.coco import read_coco
from wsfvit.detection.evaluation import ImageDetections
from wsfvit.detection.figures import category_color, draw_detections
from wsfvit.detection.shapes import CATEGORIES, draw_shapes, write_shapes
from wsfvit.utils.errors import UserError


def test_a_folder_of_shapes_is_a_sound_coco_folder(tmp_path):
    annotations, images = write_shapes(tmp_path, 12, (48, 64), seed=3)
    data = read_coco(annotations, images)
    assert tuple(data.categories.values()) == CATEGORIES and len(data.images) == 12 == len(list(images.glob("*.png")))
    assert [image.width for image in data.images[:3]] == [64, 64, 48]
    assert {entry["category_id"] for image in data.images for entry in image.annotations} == {1, 2, 3}
    assert all(1 <= len(image.annotations) <= 4 for image in data.images)
    before = annotations.read_bytes(), images.joinpath("000003.png").read_bytes()
    write_shapes(tmp_path, 12, (48, 64), seed=3)
    assert before == (annotations.read_bytes(), images.joinpath("000003.png").read_bytes())
    write_shapes(tmp_path, 12, (48, 64), seed=4)
    assert before[0] != annotations.read_bytes()


def test_boxes_and_areas_are_those_of_the_masks(tmp_path):
    annotations, _ = write_shapes(tmp_path, 5, (48, 64), seed=1)
    entries = iter(json.loads(annotations.read_text())["annotations"])
    for number in range(1, 6):
        height, width = (64, 48) if number % 3 == 0 else (48, 64)
        pixels, labels, masks = draw_shapes(height, width, derive_seed(1, number))
        assert pixels.shape == (height, width, 3) and masks.sum(0).max() == 1  # no overlap
        for label, mask in zip(labels, masks, strict=True):
            entry = next(entries)
            x, y, w, h = entry["bbox"]
            assert entry["image_id"] == number and entry["category_id"] == label + 1 and entry["area"] == mask.sum()
            assert mask[y : y + h, x : x + w].sum() == mask.sum() and mask[y].any() and mask[:, x + w - 1].any()
            assert len(np.unique(pixels[mask], axis=0)) == 1 and pixels[mask].min() >= 110 > 90


@pytest.mark.parametrize(("label", "share"), [(0, np.pi / 4), (1, 1), (2, 0.5)])
def test_shapes_fill_their_share_of_their_boxes(label, share):
    shares = []
    for seed in range(30):
        _, labels, masks = draw_shapes(200, 200, seed)
        for mask in masks[np.array(labels) == label]:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            shares.append(mask.sum() / ((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)))
    assert len(shares) > 5 and np.allclose(shares, share, atol=0.03)


@pytest.mark.parametrize("options", [{"size": (31, 64)}, {"count": 0}])
def test_senseless_requests_are_refused(options, tmp_path):
    with pytest.raises(UserError, match="are needed"):
        write_shapes(tmp_path, **options)


def detection(score, label, box):
    mask = torch.zeros(80, 120, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return torch.tensor(box, dtype=torch.float32), torch.tensor(score), torch.tensor(label), mask


def draw(*found, **options):
    detections = ImageDetections(1, *(torch.stack(column) for column in zip(*found, strict=True)))
    image = Image.new("RGB", (120, 80), (100, 100, 100))
    drawn = draw_detections(image, detections, ["cat", "dog"], **options)
    assert image.getpixel((50, 50)) == (100, 100, 100) and drawn.size == image.size
    return np.array(drawn)


def test_masks_and_boxes_are_drawn_in_the_colour_of_the_category():
    pixels = draw(detection(0.9, 1, (40, 30, 80, 70)))
    color = np.array(category_color(1))
    assert (pixels[69, 40:80] == color).all() and (pixels[30:70, 40] == color).all()  # the frame is inside the box
    assert (abs(pixels[60, 60] - (0.55 * 100 + 0.45 * color)) <= 0.5).all()
    assert (pixels[75] == 100).all() and (pixels[:, 5] == 100).all()
    text = pixels[15:30, 40:90].reshape(-1, 3)  # the name above the box
    assert (text == color).all(1).any() and len(np.unique(text, axis=0)) > 2


def test_weak_detections_are_left_out_and_the_best_lie_on_top():
    assert (draw(detection(0.29, 0, (40, 30, 80, 70))) == 100).all()
    assert (draw(detection(0.29, 0, (40, 30, 80, 70)), min_score=0.2) != 100).any()
    pixels = draw(detection(0.9, 0, (40, 30, 80, 70)), detection(0.5, 1, (40, 30, 80, 70)))
    assert (pixels[69, 40:80] == category_color(0)).all()


def test_names_stay_inside_the_image():
    pixels = draw(detection(0.9, 0, (100, 0, 120, 10)))
    assert (pixels[:3, :100] == category_color(0)).all(2).any()  # begins to the left of the box, at the top


def test_colours_of_categories_differ():
    colors = np.array([category_color(label) for label in range(80)], dtype=float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e9 * np.eye(80)
    assert distances.min() > 0 and distances[0, 1] > 100
