"""Assignment and sampling by hand. All boxes are 10 high and start at one corner: IoUs are ratios of widths."""

import pytest
import torch
from torch import Tensor

from wsfvit.detection.model import boxes as boxes_module
from wsfvit.detection.model.boxes import SampledRoIs, match_boxes, sample_matches
from wsfvit.detection.model.config import DetectorConfig, StageConfig


def bars(*widths: float, at: float = 0) -> Tensor:
    """Boxes 10 high and so wide, all starting at x = ``at``."""
    return torch.tensor([[at, 0, at + width, 10] for width in widths]).reshape(-1, 4)


def test_thresholds_include_their_own_value() -> None:
    boxes = bars(100, 70, 69, 30, 29)
    assert match_boxes(boxes, bars(100), positive=0.7, negative=0.3).tolist() == [1, 1, -1, -1, 0]
    assert match_boxes(boxes, bars(100), positive=0.5, negative=0.5).tolist() == [1, 1, 1, 0, 0]


def test_a_box_belongs_to_the_object_it_overlaps_most() -> None:
    objects = torch.cat([bars(100), bars(60)])
    assert match_boxes(bars(90, 70, 62), objects, 0.5, 0.5).tolist() == [1, 2, 2]


def test_low_quality_takes_all_ties_from_the_floor_on() -> None:
    objects = torch.cat([bars(100), bars(100, at=500), bars(100, at=1000)])
    boxes = torch.cat([bars(40, 40, 35), bars(29, at=500), bars(30, at=1000)])
    assert match_boxes(boxes, objects, 0.7, 0.3).tolist() == [-1, -1, -1, 0, -1]
    # Both boxes of IoU 0.4 tie for the first object; the second's best is below the floor, the third's on it.
    assert match_boxes(boxes, objects, 0.7, 0.3, low_quality=0.3).tolist() == [1, 1, -1, 0, 3]


def test_low_quality_overwrites_a_better_match_and_the_later_object_wins() -> None:
    objects = bars(100, 60, 61)
    # The only box overlaps the first object most, yet it is every object's best.
    assert match_boxes(bars(100), objects, 0.7, 0.3).tolist() == [1]
    assert match_boxes(bars(100), objects, 0.7, 0.3, low_quality=0.3).tolist() == [3]
    assert match_boxes(bars(100), objects, 0.7, 0.3, low_quality=0.605).tolist() == [3]
    assert match_boxes(bars(100), objects, 0.7, 0.3, low_quality=0.62).tolist() == [1]


def test_without_objects_all_is_background_and_without_boxes_nothing_is_matched() -> None:
    assert match_boxes(bars(5, 6), bars(), 0.7, 0.3, 0.3).tolist() == [0, 0]
    assert match_boxes(bars(), bars(5), 0.7, 0.3, 0.3).tolist() == []


@pytest.mark.parametrize(
    ("objects", "background", "expected"),
    [(300, 1000, (64, 192)), (10, 1000, (10, 246)), (300, 50, (64, 50)), (0, 1000, (0, 256)), (0, 0, (0, 0))],
)
def test_sampling_numbers(objects: int, background: int, expected: tuple[int, int]) -> None:
    """At most a quarter are objects; background fills up, and nothing replaces missing background."""
    matches = torch.cat([torch.full((objects,), 3), torch.zeros(background), torch.full((40,), -1)]).long()
    matches = matches[torch.randperm(len(matches))]
    positives, negatives = sample_matches(matches, 256, 0.25)
    assert (len(positives), len(negatives)) == expected
    assert (matches[positives] == 3).all() and (matches[negatives] == 0).all()
    assert len(positives.unique()) == len(positives) and len(negatives.unique()) == len(negatives)


def test_sampling_is_random_and_follows_the_seed() -> None:
    matches = torch.zeros(1000, dtype=torch.int64)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample_matches(matches, 100, 0.5)[1].tolist())
    assert draws[0] == draws[1] != draws[2]


def sample_rois(proposals: Tensor, target: dict[str, Tensor], low_quality: bool, share: float = 1.0) -> SampledRoIs:
    """Of 7 classes, at an IoU of 0.5."""
    config = DetectorConfig("none", 7, low_quality_rois=low_quality, roi_positive_fraction=share)
    return boxes_module.sample_rois(proposals, target, config, StageConfig(0.5))


def test_objects_join_their_image_as_rois_of_their_own() -> None:
    """The second object lies within the first and is still its own match; an RoI has its object's class."""
    target = {"boxes": bars(100, 90), "labels": torch.tensor([4, 2])}
    rois = sample_rois(bars(98, 91, 20), target, low_quality=False)
    assert rois.boxes.tolist() == bars(100, 90, 98, 91, 20).tolist()
    assert rois.objects.tolist() == [0, 1, 0, 1]
    assert rois.labels.tolist() == [4, 2, 4, 2, 7]
    assert rois.is_object.tolist() == [True, True, False, False, False]


def test_low_quality_rois_count_from_the_stage_threshold_on() -> None:
    target = {"boxes": bars(100, 60), "labels": torch.tensor([0, 1])}
    for low_quality, objects in ((False, [0, 1, 0]), (True, [0, 1, 1])):
        rois = sample_rois(bars(100), target, low_quality)
        assert rois.objects.tolist() == objects
    rois = sample_rois(bars(49), {k: v[:1] for k, v in target.items()}, low_quality=True)
    assert rois.labels.tolist() == [0, 7]


def test_rois_of_an_image_without_objects() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    rois = sample_rois(bars(10, 20), empty, low_quality=True, share=0.25)
    assert rois.labels.tolist() == [7, 7] and not rois.is_object.any() and len(rois.objects) == 0
