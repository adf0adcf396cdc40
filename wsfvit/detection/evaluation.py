"""COCO evaluation: a detector over a whole split, on all processes together, and its average precision (AP).

``CocoValidation`` runs the detector over a loader and collects what it finds in a ``CocoEvaluator``, which computes the
AP of boxes and masks with pycocotools or faster-coco-eval; both give the same numbers.
"""

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import box_convert

from wsfvit.detection.data.coco_masks import encode_masks
from wsfvit.detection.data.dataset import DetectionBatch
from wsfvit.detection.model.detector import to_original
from wsfvit.detection.model.roi_heads import Detections
from wsfvit.factory.data import Loader
from wsfvit.utils.distributed import World
from wsfvit.utils.errors import UserError, import_optional
from wsfvit.utils.precision import autocast
from wsfvit.utils.progress import Progress

Backend = Literal["pycocotools", "faster"]
Entry = dict[str, Any]
IOU_TYPES = ("bbox", "segm")
# Index of each reported metric in COCO's summary of twelve.
METRICS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR100": 8}


@dataclass(frozen=True)
class ImageDetections:
    """Detections in one image file, in pixels of the file."""

    image_id: int  # id in the annotation file
    boxes: Tensor  # float32 (M, 4), x1, y1, x2, y2
    scores: Tensor  # float32 (M,), best first
    labels: Tensor  # int64 (M,)
    masks: Tensor  # bool (M, H, W)


@contextlib.contextmanager
def finite_outputs(detector: nn.Module) -> Iterator[None]:
    """Raises a ``UserError`` at the end if a detector's parts had outputs that are NaN or infinite.

    NaN has no score above a threshold, so that detections hide it.
    """
    bad: dict[str, Tensor] = {}
    hooks = []
    for name, module in detector.named_modules():
        if name in ("fpn", "rpn.head") or name.startswith("roi_heads.") and name.count(".") == 2:

            def check(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                bad[name] = torch.stack([~x.isfinite().all() for x in tree_leaves(output)]).any()

            hooks.append(module.register_forward_hook(check))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    first = next((name for name, found in bad.items() if found), None)
    if first is not None:
        raise UserError(
            f"the detector's outputs are not finite (first in {first}): take other weights, or leave out --amp"
        )


def to_image_detections(detections: list[Detections], batch: DetectionBatch) -> Iterator[ImageDetections]:
    """Yields the detections of a batch in pixels of the files, on their device."""
    images = zip(detections, batch.sizes, batch.original_sizes, batch.image_ids, strict=True)
    for found, size, original_size, image_id in images:
        boxes, masks = to_original(found, size, original_size)
        yield ImageDetections(image_id, boxes, found.scores, found.labels, masks)


def encode_detections(found: ImageDetections, category_ids: Sequence[int]) -> list[Entry]:
    """Detections in COCO's format of results, ready for JSON; ``category_ids`` has the id of each label."""
    image, categories = found.image_id, [category_ids[label] for label in found.labels.tolist()]
    boxes = box_convert(found.boxes.detach().cpu().double(), "xyxy", "xywh").tolist()
    rles = encode_masks(found.masks.detach().cpu().numpy())
    return [
        {"image_id": image, "category_id": category, "bbox": box, "score": score, "segmentation": rle}
        for category, box, score, rle in zip(categories, boxes, found.scores.tolist(), rles, strict=True)
    ]


# COCO's twelve metrics, and the precision (10 IoU thresholds, 101 recalls, K categories) behind the first.
Result = tuple[list[float], np.ndarray]


class CocoEvaluator:
    """Average precision over the collected detections of all images.

    Masks are kept as run lengths. An image that is added twice counts once, also across processes.

    Args:
        ground_truth: COCO dictionary, checked as by ``CocoData.ground_truth``. A label is the index of a category id
            among the sorted ids.
        backend: Package that computes the metrics.
        kinds: What is measured, of ``IOU_TYPES``.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, ground_truth: Entry, backend: Backend = "pycocotools", kinds: Sequence[str] = IOU_TYPES) -> None:
        self.kinds = kinds
        self._make_coco, self._make_evaluation = _import_backend(backend)
        categories = sorted(ground_truth["categories"], key=lambda entry: int(entry["id"]))
        self.categories = {entry["id"]: entry["name"] for entry in categories}
        self._category_ids = list(self.categories)
        # Copies, because the backends write into them; ids start at 1, because a match with id 0 counts as none.
        annotations = [{**entry, "id": number} for number, entry in enumerate(ground_truth["annotations"], start=1)]
        self._truth = self._index({**ground_truth, "annotations": annotations})
        self._image_ids = {entry["id"] for entry in ground_truth["images"]}
        self._found: dict[int, list[Entry]] = {}
        self._results: dict[str, Result] = {}

    def add(self, found: ImageDetections) -> None:
        """Adds the detections of one image, which must be in the ground truth (else a ``ValueError``)."""
        if found.image_id not in self._image_ids:
            raise ValueError(f"the ground truth has no image {found.image_id}")
        self._results.clear()
        self._found[found.image_id] = encode_detections(found, self._category_ids)

    def gather(self, world: World) -> None:
        """Gives every process the detections of all; of an image that several have, those of the lowest rank."""
        parts = world.gather(self._found)
        self._found = {image_id: found for part in reversed(parts) for image_id, found in part.items()}
        self._results.clear()

    def detections_json(self) -> list[Entry]:
        """All detections in COCO's format of results, by image id; ``bbox`` is x, y, width, height."""
        return [entry for image_id in sorted(self._found) for entry in self._found[image_id]]

    def summary(self) -> dict[str, float]:
        """COCO's metrics from 0 to 1 over all images of the ground truth.

        Keys are ``bbox_`` or ``segm_`` and AP (mean over IoU 0.5 to 0.95), AP50, AP75, APs, APm, APl (areas up to 32^2,
        up to 96^2 and above), AR100 (recall with 100 detections per image). A metric without any object is -1.
        """
        stats = {kind: self._result(kind)[0] for kind in self.kinds}
        return {f"{kind}_{name}": stats[kind][index] for kind in self.kinds for name, index in METRICS.items()}

    def per_category(self) -> list[Entry]:
        """One row per category: id, name, number of objects, and AP and AP50 of boxes and masks; -1 without objects."""
        rows = []
        for index, (key, name) in enumerate(self.categories.items()):
            objects = self._truth.loadAnns(self._truth.getAnnIds(catIds=[key]))
            row: Entry = {"id": key, "name": name, "objects": sum(not entry["iscrowd"] for entry in objects)}
            for kind in self.kinds:
                precision = self._result(kind)[1][:, :, index]
                row[f"{kind}_AP"], row[f"{kind}_AP50"] = _mean(precision), _mean(precision[0])
            rows.append(row)
        return rows

    def _result(self, kind: str) -> Result:
        if kind in self._results:
            return self._results[kind]
        # With a box in its entry a mask would count as small, medium or large by the area of that box.
        left_out = "segmentation" if kind == "bbox" else "bbox"
        found = [{key: value for key, value in entry.items() if key != left_out} for entry in self.detections_json()]
        with contextlib.redirect_stdout(io.StringIO()):
            # loadRes of pycocotools fails on an empty list.
            results = self._truth.loadRes(found) if found else self._index({**self._truth.dataset, "annotations": []})
            evaluation = self._make_evaluation(self._truth, results, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        # Axes: IoU thresholds, recalls, categories, areas (the first: all), detections per image (the last: 100). A
        # copy of this part, because the whole evaluation keeps every match of every image.
        self._results[kind] = evaluation.stats.tolist(), evaluation.eval["precision"][:, :, :, 0, -1].copy()
        return self._results[kind]

    def _index(self, content: Entry) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = self._make_coco()
            coco.dataset = content
            coco.createIndex()
        return coco


def _import_backend(backend: Backend) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if backend == "faster":
        advice = "COCO evaluation needs faster-coco-eval: pip install faster-coco-eval"
        faster = import_optional("faster_coco_eval", advice)
        return faster.COCO, faster.COCOeval_faster
    advice = "COCO evaluation needs pycocotools: pip install pycocotools"
    coco, cocoeval = (import_optional(f"pycocotools.{name}", advice) for name in ("coco", "cocoeval"))
    return coco.COCO, cocoeval.COCOeval


def _mean(precision: np.ndarray) -> float:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


@dataclass
class CocoValidation:
    """Validation pass: COCO's metrics of a detector over the images of a loader."""

    world: World  # the processes, each with a loader of its own share of the images
    ground_truth: Entry  # COCO dictionary of all images
    amp_dtype: torch.dtype | None = None  # lower precision of autocast, or None for float32
    layout: torch.memory_format = torch.contiguous_format  # memory format of the images
    backend: Backend = "pycocotools"  # package that computes the metrics
    log_interval: int = 50  # batches between two progress lines
    keep: int = 0  # number of images whose detections are kept, for figures
    kinds: Sequence[str] = IOU_TYPES  # what is measured, of ``IOU_TYPES``
    evaluator: CocoEvaluator | None = None  # of the last call
    # Detections of the first images of this process's share in the last call.
    kept: list[ImageDetections] = field(default_factory=list)
    # Of the last call, images per second of all processes: ``images_per_s`` with data loading and mask pasting,
    # ``detector_images_per_s`` of the detector alone.
    speed: dict[str, float] = field(default_factory=dict)

    # Not inference_mode: a model may cache tensors here, which training could not use then.
    @torch.no_grad()
    def __call__(self, model: nn.Module, loader: Loader, title: str) -> dict[str, float]:
        """Evaluates the model; returns ``CocoEvaluator.summary``, the same in every process."""
        evaluator, self.kept = CocoEvaluator(self.ground_truth, self.backend, self.kinds), []
        model.eval()
        images, seconds = 0, 0.0
        with Progress(title, len(loader), self.log_interval, shown=self.world.is_main) as progress:
            for batch in loader:
                started = time.perf_counter()
                detections = self._detect(model, batch)
                seconds += time.perf_counter() - started
                for found in to_image_detections(detections, batch):
                    evaluator.add(found)
                    if len(self.kept) < self.keep:
                        self.kept.append(found)
                images += len(batch)
                progress.step(len(batch) * self.world.size)
        evaluator.gather(self.world)
        self.evaluator = evaluator
        count = images * self.world.size
        self.speed = {"images_per_s": progress.per_second, "detector_images_per_s": count / seconds if seconds else 0.0}
        return evaluator.summary()

    def _detect(self, model: nn.Module, batch: DetectionBatch) -> list[Detections]:
        device = self.world.device
        images = batch.images.to(device, memory_format=self.layout)
        with autocast(device, self.amp_dtype), finite_outputs(model):
            found: list[Detections] = model(images, batch.sizes)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found
