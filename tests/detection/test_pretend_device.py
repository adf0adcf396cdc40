"""A detector's losses, gradients and detections on a device beside the CPU."""

import torch
from detection.tiny_detector import SMALL, parse
from pretend_device import PretendDevice

from wsfvit.detection.data.dataset import DetectionBatch
from wsfvit.detection.evaluation import encode_detections, to_image_detections
from wsfvit.detection.model.config import KINDS
from wsfvit.detection.model.detector import build_detector
from wsfvit.detection.train import DetectionTask
from wsfvit.utils.distributed import World

SIZE = (60, 64)


def test_a_training_step_and_detections():
    torch.manual_seed(0)
    few = {"proposals_train": 12, "proposals_test": 8, "max_detections": 3, "score_threshold": 0.0}
    config = KINDS["cascade_mask_rcnn"]("test_resnet", 2, backbone_options={"frozen_stats": False}, **SMALL, **few)
    detector = build_detector(config)
    target = {
        "boxes": torch.tensor([[4.0, 4.0, 40.0, 44.0], [20.0, 10.0, 60.0, 30.0]]),
        "labels": torch.tensor([0, 1]),
        "masks": torch.ones(2, *SIZE, dtype=torch.uint8),
        "image_id": 1,
    }
    batch = DetectionBatch(torch.randn(1, 3, 64, 64), [SIZE], [target], [(30, 32)], [1])
    task = DetectionTask(parse("data", "--channels-last"), World(torch.device("cpu")))
    with PretendDevice():
        device = torch.device("lazy")
        detector.to(device)
        loss, _ = task.loss(detector, task.prepare(batch, device))
        loss.backward()
        assert {parameter.grad.device.type for parameter in detector.parameters()} == {"lazy"}
        with torch.no_grad():
            [found] = to_image_detections(detector.eval()(batch.images.to(device), batch.sizes), batch)
        assert found.masks.device.type == "lazy" and found.masks.shape == (3, 30, 32)
        assert len(encode_detections(found, [1, 2])) == 3
