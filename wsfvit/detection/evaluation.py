"""A detector over a whole split, on all processes together: its detections, its average precision, its speed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wsfvit.detection.data.batch import DetectionBatch
from wsfvit.detection.evaluate import Backend, CocoEvaluator
from wsfvit.detection.model.detector import to_original
from wsfvit.detection.model.roi_heads import Detections
from wsfvit.factory.data import Loader
from wsfvit.utils.distributed import World
from wsfvit.utils.precision import autocast
from wsfvit.utils.progress import Progress


@dataclass(frozen=True)
class Found:
    """What was found in one image, in its own pixels.

    Attributes:
        boxes: float32 (M, 4).
        scores: float32 (M,), best first.
        labels: int64 (M,).
        masks: bool (M, H, W).
    """

    image_id: int
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


@dataclass
class CocoValidation:
    """Rates a detector by COCO's average precision; called as ``Plan.validate`` says.

    Attributes:
        world: The processes, each with a loader of its own share.
        ground_truth: COCO dictionary of all images.
        amp_dtype: Mixed precision, or None.
        layout: Memory format of the images.
        backend: Who computes the figures.
        log_interval: Batches between two progress lines.
        keep: Images to keep the detections of, for pictures.
        evaluator: Of the last call.
        kept: The first images of this process's share in the last call.
        speed: Of the last call, images per second of all processes: ``images_per_s`` with reading and pasting of masks,
            ``detector_images_per_s`` of the detector alone.
    """

    world: World
    ground_truth: dict[str, Any]
    amp_dtype: torch.dtype | None = None
    layout: torch.memory_format = torch.contiguous_format
    backend: Backend = "pycocotools"
    log_interval: int = 50
    keep: int = 0
    evaluator: CocoEvaluator | None = None
    kept: list[Found] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)

    # Not inference_mode: a model may keep what it computed here, and training could not use that then.
    @torch.no_grad()
    def __call__(self, model: nn.Module, loader: Loader, title: str) -> dict[str, float]:
        """Returns the columns of ``CocoEvaluator.summary``."""
        evaluator, self.kept = CocoEvaluator(self.ground_truth, self.backend), []
        model.eval()
        images, seconds = 0, 0.0
        with Progress(title, len(loader), self.log_interval, shown=self.world.is_main) as progress:
            for batch in loader:
                started = time.perf_counter()
                detections = self._detect(model, batch)
                seconds += time.perf_counter() - started
                for found in to_files(detections, batch):
                    evaluator.add(found.image_id, found.boxes, found.scores, found.labels, found.masks)
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
        with autocast(device, self.amp_dtype):
            found: list[Detections] = model(images, batch.sizes)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found


def to_files(detections: list[Detections], batch: DetectionBatch) -> Iterator[Found]:
    """The detections of a batch in the pixels of the files, on their device."""
    places = zip(detections, batch.sizes, batch.original_sizes, batch.image_ids, strict=True)
    for found, size, original_size, image_id in places:
        boxes, masks = to_original(found, size, original_size)
        yield Found(image_id, boxes, found.scores, found.labels, masks)
