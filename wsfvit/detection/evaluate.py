"""COCO's average precision of boxes and masks, by pycocotools or by faster-coco-eval with equal numbers."""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from wsfvit.detection.data.coco_masks import encode_masks
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError

Backend = Literal["pycocotools", "faster"]
Entry = dict[str, Any]
KINDS = ("bbox", "segm")
# Places of what is reported among the twelve figures of COCO's summary.
FIGURES = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}


@dataclass(frozen=True)
class _Rating:
    """COCO's twelve figures, and the precision (10 thresholds, 101 recalls, categories) that their first is made of."""

    figures: list[float]
    precision: np.ndarray


class CocoEvaluator:
    """Collects the detections of all images and rates them.

    Memory holds the masks as run lengths only. An image that was added twice counts once, also over processes.

    Args:
        ground_truth: COCO dictionary; ``CocoData.ground_truth`` gives a checked one. Labels are the places of its
            category ids in increasing order.
        backend: Who computes.

    Raises:
        UserError: the backend's package is not installed.
    """

    def __init__(self, ground_truth: Entry, backend: Backend = "pycocotools") -> None:
        self._make_coco, self._make_evaluation = _import_backend(backend)
        self.categories = {entry["id"]: entry["name"] for entry in sorted(ground_truth["categories"], key=_get_id)}
        self._category_ids = list(self.categories)
        # Copies, because the backends write into them; numbered from 1, because a match with number 0 counts as none.
        annotations = [{**entry, "id": number} for number, entry in enumerate(ground_truth["annotations"], start=1)]
        self._truth = self._index({**ground_truth, "annotations": annotations})
        self._image_ids = {entry["id"] for entry in ground_truth["images"]}
        self._found: dict[int, list[Entry]] = {}
        self._ratings: dict[str, _Rating] | None = None

    def add(self, image_id: int, boxes: Tensor, scores: Tensor, labels: Tensor, masks: Tensor) -> None:
        """Adds the detections of one image.

        Args:
            image_id: Its id in the ground truth.
            boxes: (M, 4) x1, y1, x2, y2 in pixels of the original image.
            scores: (M,).
            labels: int64 (M,).
            masks: bool (M, H, W) of the original image.

        Raises:
            ValueError: the ground truth has no such image.
        """
        if image_id not in self._image_ids:
            raise ValueError(f"the ground truth has no image {image_id}")
        self._ratings = None
        self._found[image_id] = encode_detections(image_id, boxes, scores, labels, masks, self._category_ids)

    def gather(self, world: World) -> None:
        """Collects the detections of all processes in each of them; the lowest rank's count where several have some."""
        parts = world.gather(self._found)
        self._found = {image_id: found for part in reversed(parts) for image_id, found in part.items()}
        self._ratings = None

    def detections_json(self) -> list[Entry]:
        """All detections in COCO's format of results, by image id; ``bbox`` is x, y, width, height."""
        return [entry for image_id in sorted(self._found) for entry in self._found[image_id]]

    def summary(self) -> dict[str, float]:
        """COCO's figures from 0 to 1 over the images of the ground truth, detected in or not.

        Keys are ``bbox_`` or ``segm_`` and AP (mean over IoU 0.5 to 0.95), AP50, AP75, APs, APm, APl (areas up to 32^2,
        up to 96^2 and above), AR100 (recall with 100 detections per image). A figure of no objects at all is -1.
        """
        ratings = self._rate()
        return {f"{kind}_{name}": ratings[kind].figures[place] for kind in KINDS for name, place in FIGURES.items()}

    def per_category(self) -> list[Entry]:
        """One row per category: id, name, number of objects, and AP and AP50 of boxes and masks; -1 without objects."""
        ratings = self._rate()
        rows = []
        for place, (key, name) in enumerate(self.categories.items()):
            objects = self._truth.loadAnns(self._truth.getAnnIds(catIds=[key]))
            row: Entry = {"id": key, "name": name, "objects": sum(not entry["iscrowd"] for entry in objects)}
            for kind in KINDS:
                precision = ratings[kind].precision[:, :, place]
                row[f"{kind}_AP"], row[f"{kind}_AP50"] = _mean(precision), _mean(precision[0])
            rows.append(row)
        return rows

    def _rate(self) -> dict[str, "_Rating"]:
        if self._ratings is None:
            self._ratings = {kind: self._rate_kind(kind) for kind in KINDS}
        return self._ratings

    def _rate_kind(self, kind: str) -> "_Rating":
        # With a box in its entry a mask would count as small, medium or large by the area of that box.
        left_out = "segmentation" if kind == "bbox" else "bbox"
        found = [{key: value for key, value in entry.items() if key != left_out} for entry in self.detections_json()]
        with contextlib.redirect_stdout(io.StringIO()):
            # Given an empty list, loadRes of pycocotools fails.
            results = self._truth.loadRes(found) if found else self._index({**self._truth.dataset, "annotations": []})
            evaluation = self._make_evaluation(self._truth, results, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        # IoU thresholds, recalls, categories, areas (the first: all), detections per image (the last: 100). A copy
        # of this part, because the evaluation as a whole keeps every pairing of every image.
        return _Rating(evaluation.stats.tolist(), evaluation.eval["precision"][:, :, :, 0, -1].copy())

    def _index(self, content: Entry) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = self._make_coco()
            coco.dataset = content
            coco.createIndex()
        return coco


def encode_detections(
    image_id: int, boxes: Tensor, scores: Tensor, labels: Tensor, masks: Tensor, category_ids: Sequence[int]
) -> list[Entry]:
    """Detections of one image in COCO's format of results, ready for JSON.

    Args:
        image_id: As in the annotation file.
        boxes: (M, 4) x1, y1, x2, y2.
        scores: (M,).
        labels: int64 (M,).
        masks: bool (M, H, W).
        category_ids: The id of each label.
    """
    corners = boxes.detach().cpu().double()
    sizes = corners[:, 2:] - corners[:, :2]
    found = zip(
        np.concatenate((corners[:, :2], sizes), 1).tolist(),
        scores.tolist(),
        labels.tolist(),
        encode_masks(masks.detach().cpu().numpy()),
        strict=True,
    )
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score, "segmentation": rle}
        for box, score, label, rle in found
    ]


def _import_backend(backend: Backend) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if backend == "faster":
        try:
            from faster_coco_eval import COCO, COCOeval_faster
        except ImportError as err:
            raise UserError("this evaluation needs faster-coco-eval: pip install faster-coco-eval") from err
        return COCO, COCOeval_faster
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as err:
        raise UserError("COCO evaluation needs pycocotools: pip install pycocotools") from err
    return COCO, COCOeval


def _get_id(entry: Entry) -> int:
    return int(entry["id"])


def _mean(precision: np.ndarray) -> float:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0
