"""Small detectors for tests: the flags of a training, and a checkpoint of an untrained one."""

import torch

from wsfvit.checkpoint.io import save_atomic
from wsfvit.cli.run import parse_with_config
from wsfvit.detection.args import train_parser
from wsfvit.detection.checkpoint import Setting, describe
from wsfvit.detection.data.transforms import EvalTransform, Normalize
from wsfvit.detection.model.config import mask_rcnn_config
from wsfvit.detection.model.detector import build_detector
from wsfvit.detection.shapes import CATEGORIES

SMALL = {"fpn_width": 16, "fc_width": 32, "roi_samples": 16, "rpn_samples": 32}
RECIPE = ["--model", "test_resnet", "--no-frozen-stats", "--device", "cpu", "-j", "0", "--no-tensorboard"]
RECIPE += ["--detector-kwargs", *(f"{key}={value}" for key, value in SMALL.items()), "--proposals", "20"]
RECIPE += ["--max-detections", "5", "--long-side", "64", "--short-sides", "64", "--warmup-updates", "0"]


def parse(data, *argv):
    """Arguments of a small training."""
    return parse_with_config(train_parser(), [str(data), *RECIPE, *map(str, argv)])


def write_checkpoint(path, categories=CATEGORIES, **changes):
    """Writes a checkpoint of an untrained detector, which finds something nearly everywhere; returns the detector."""
    torch.manual_seed(0)
    small = SMALL | {"proposals_test": 20, "max_detections": 5, "backbone_options": {"frozen_stats": False}} | changes
    config = mask_rcnn_config("test_resnet", len(categories), **small)
    setting = Setting(dict(enumerate(categories, start=1)), EvalTransform(64, 64), Normalize(), multiple=32)
    detector = build_detector(config)
    save_atomic({"state_dict": detector.state_dict(), **describe(config, setting)}, path)
    return detector


def write_broken(source, path, part):
    """Writes a checkpoint whose weights of one part are NaN."""
    content = torch.load(source, weights_only=True)
    for key, value in content["state_dict"].items():
        if key.startswith(part) and value.is_floating_point():
            value.fill_(float("nan"))
    save_atomic(content, path)
