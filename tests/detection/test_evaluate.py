"""COCO's average precision: computed by hand in a small case, and equal numbers of both backends in a larger one."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from wsfvit.detection.data.coco import read_coco
from wsfvit.detection.data.coco_masks import encode_masks, sample_masks
from wsfvit.detection.evaluation import CocoEvaluator, ImageDetections
from wsfvit.detection.shapes import write_shapes
from wsfvit.utils.distributed import World

BACKENDS = ("pycocotools", "faster")


def box_mask(x1, y1, x2, y2):
    mask = np.zeros((40, 60), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def ground_truth(*objects):
    """One 60x40 image, objects as (category, x1, y1, x2, y2, crowd); categories 3 and 8, labels 0 and 1."""
    annotations = []
    for number, (category, x1, y1, x2, y2, crowd) in enumerate(objects):
        (rle,) = encode_masks(box_mask(x1, y1, x2, y2)[None])
        area = (x2 - x1) * (y2 - y1)
        box = [x1, y1, x2 - x1, y2 - y1]
        entry = {"id": number, "image_id": 5, "category_id": category, "bbox": box, "iscrowd": crowd, "area": area}
        annotations.append({**entry, "segmentation": rle})
    return {
        "images": [{"id": 5, "height": 40, "width": 60}],
        "categories": [{"id": 8, "name": "eight"}, {"id": 3, "name": "three"}],
        "annotations": annotations,
    }


def add(evaluator, *detections):
    """Detections as (score, label, box, mask box)."""
    scores, labels, boxes, masks = zip(*detections, strict=True) if detections else ((), (), (), ())
    found = ImageDetections(
        5,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
        torch.from_numpy(np.stack([box_mask(*mask) for mask in masks]) if masks else np.zeros((0, 40, 60), bool)),
    )
    evaluator.add(found)


A, B = (0, 0, 10, 8), (20, 0, 30, 8)
TWO_OBJECTS = [(3, *A, 0), (3, *B, 0)]
# The best is right, the second wrong, the third overlaps by 50 of 80 pixels with its box, entirely with its mask.
THREE_FOUND = [(0.9, 0, A, A), (0.8, 0, (40, 20, 50, 28), (40, 20, 50, 28)), (0.7, 0, (20, 0, 30, 5), B)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    """Precision counts at recalls 0, 0.01, ... 1: 1 at 51 of them, up to recall 0.5, and then 2/3, or 0 if B is missed.

    B's box, of IoU 0.625, is found at the thresholds 0.5, 0.55 and 0.6 of ten.
    """
    evaluator = CocoEvaluator(ground_truth(*TWO_OBJECTS), backend)
    add(evaluator, *THREE_FOUND)
    found, missed = (51 + 50 * 2 / 3) / 101, 51 / 101
    expected = {
        "bbox_AP": (3 * found + 7 * missed) / 10, "bbox_AP50": found, "bbox_AP75": missed,
        "bbox_APs": (3 * found + 7 * missed) / 10, "bbox_APm": -1, "bbox_APl": -1, "bbox_AR100": (3 * 1 + 7 * 0.5) / 10,
        "segm_AP": found, "segm_AP50": found, "segm_AP75": found,
        "segm_APs": found, "segm_APm": -1, "segm_APl": -1, "segm_AR100": 1,
    }  # fmt: skip
    assert evaluator.summary() == pytest.approx(expected)
    three, eight = evaluator.per_category()
    assert (three["id"], three["name"], three["objects"], eight["name"], eight["objects"]) == (
        3,
        "three",
        2,
        "eight",
        0,
    )
    assert [three[key] for key in ("bbox_AP", "bbox_AP50", "segm_AP")] == pytest.approx(
        [expected["bbox_AP"], found, found]
    )
    assert eight["bbox_AP"] == eight["segm_AP50"] == -1


@pytest.mark.parametrize("backend", BACKENDS)
def test_crowds_are_neither_found_nor_missed(backend):
    evaluator = CocoEvaluator(ground_truth((3, *A, 0), (3, 20, 0, 60, 40, 1)), backend)
    add(evaluator, (0.9, 0, B, B), (0.8, 0, A, A))
    assert evaluator.summary()["bbox_AP"] == evaluator.summary()["segm_AP"] == pytest.approx(1)
    assert evaluator.per_category()[0]["objects"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("added", [True, False])
def test_no_detections_have_zero_average_precision(backend, added, capfd):
    evaluator = CocoEvaluator(ground_truth(*TWO_OBJECTS), backend)
    if added:
        add(evaluator)
    summary = evaluator.summary()
    assert summary["bbox_AP"] == summary["segm_AP50"] == summary["bbox_AR100"] == 0 and summary["bbox_APl"] == -1
    assert evaluator.per_category()[0]["bbox_AP"] == 0 and evaluator.detections_json() == []
    assert capfd.readouterr().out == ""


def test_the_area_of_a_mask_is_not_that_of_its_box():
    """A wrong detection with a large box and a small mask counts against small masks, and not against small boxes."""
    evaluator = CocoEvaluator(ground_truth((3, *A, 0)))
    add(evaluator, (0.9, 0, (0, 0, 60, 40), (40, 30, 50, 38)), (0.8, 0, A, A))
    summary = evaluator.summary()
    assert (summary["bbox_APs"], summary["segm_APs"]) == pytest.approx((1, 0.5))


def test_detections_json():
    evaluator = CocoEvaluator(ground_truth(*TWO_OBJECTS))
    add(evaluator, (0.5, 1, (1, 2.5, 4, 9), B))
    (entry,) = json.loads(json.dumps(evaluator.detections_json()))
    rle = entry.pop("segmentation")
    assert entry == {"image_id": 5, "category_id": 8, "bbox": [1, 2.5, 3, 6.5], "score": 0.5}
    assert (sample_masks([rle], 40, 60, np.arange(40), np.arange(60))[0] == box_mask(*B)).all()


@dataclass(frozen=True)
class TwoProcesses(World):
    """The first of two processes; what the other one would send is given."""

    other: object = None

    def gather(self, value):
        return [value, self.other]


def test_gathering_counts_an_image_once(tmp_path):
    data = read_coco(*write_shapes(tmp_path, 6, (40, 60)))
    whole, first, second = (CocoEvaluator(data.ground_truth()) for _ in range(3))
    add_shapes(whole, data.images)
    add_shapes(first, data.images[:4])
    add_shapes(second, data.images[2:])
    first.summary()  # metrics of its own before
    first.gather(TwoProcesses(torch.device("cpu"), size=2, other=second._found))
    assert first.detections_json() == whole.detections_json() and first.summary() == whole.summary()


def add_shapes(evaluator, images):
    """Adds the true objects, shifted, sometimes relabelled, with random scores, and a false one each."""
    for image in images:
        random = np.random.default_rng(image.id)
        segmentations = [entry["segmentation"] for entry in image.annotations]
        shift = random.integers(-2, 3)
        masks = sample_masks(segmentations, image.height, image.width, np.arange(image.height), np.arange(image.width))
        masks = np.roll(np.concatenate((masks, masks[:1])), shift, (1, 2)).astype(bool)
        boxes = torch.tensor([entry["bbox"] for entry in (*image.annotations, image.annotations[0])]).double()
        boxes[:, 2:] += boxes[:, :2]
        boxes += torch.from_numpy(random.normal(0, 1.5, boxes.shape))
        labels = torch.tensor([entry["category_id"] - 1 for entry in image.annotations] + [int(random.integers(3))])
        scores = torch.from_numpy(random.random(len(labels)))
        evaluator.add(ImageDetections(image.id, boxes, scores, labels, torch.from_numpy(masks)))


def test_both_backends_agree(tmp_path):
    data = read_coco(*write_shapes(tmp_path, 40, (96, 128)))
    results = []
    for backend in BACKENDS:
        evaluator = CocoEvaluator(data.ground_truth(), backend)
        add_shapes(evaluator, data.images)
        results.append((evaluator.summary(), evaluator.per_category()))
    (one, rows), (other, other_rows) = results
    assert one == pytest.approx(other, abs=1e-12) and 0.1 < one["bbox_AP"] < 0.9 and 0.1 < one["segm_AP"] < 0.9
    assert one["bbox_APm"] > 0
    for row, other_row in zip(rows, other_rows, strict=True):
        assert row.pop("name") == other_row.pop("name") and row == pytest.approx(other_row, abs=1e-12)
    assert np.mean([row["bbox_AP"] for row in rows]) == pytest.approx(one["bbox_AP"])


def test_the_ground_truth_is_not_changed_and_unknown_images_are_refused():
    truth = ground_truth(*TWO_OBJECTS)
    before = json.dumps(truth)
    evaluator = CocoEvaluator(truth)
    add(evaluator, *THREE_FOUND)
    evaluator.summary()
    assert json.dumps(truth) == before
    with pytest.raises(ValueError, match="no image 6"):
        evaluator.add(ImageDetections(6, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), torch.zeros(0, 40, 60)))
