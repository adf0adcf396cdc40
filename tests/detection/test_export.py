"""python -m wsfvit.detection export: the whole path of inference as ONNX and as a torch.export program."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from wsfvit.detection import export
from wsfvit.detection.checkpoint import Setting, describe
from wsfvit.detection.data.transforms import EvalTransform, Normalize
from wsfvit.detection.model.boxes import suppress
from wsfvit.detection.model.config import CASCADE_STAGES, cascade_mask_rcnn_config, mask_rcnn_config
from wsfvit.detection.model.detector import Detector, build_detector
from wsfvit.detection.model.heads import pool_rois
from wsfvit.detection.model.roi_heads import Detections
from wsfvit.inference.export import export_model, load_runner
from wsfvit.utils.errors import UserError
from wsfvit_cli import dispatch

SMALL = {"fpn_width": 8, "fc_width": 16, "candidates_test": 50, "proposals_test": 50, "max_detections": 20}
SIZE = (64, 96)


def make_images() -> list[Tensor]:
    """An image of noise and an empty one."""
    noise = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return [3 * noise, torch.zeros(1, 3, *SIZE)]


@torch.no_grad()
def make_detector(build: Any, backbone: str, **changes: Any) -> Detector:
    """A detector with random weights that finds something in one of `make_images`, and nothing in the other."""
    torch.manual_seed(0)
    detector = build_detector(build(backbone, 3, score_threshold=0.0, **SMALL, **changes)).eval()
    best = [detector(image, [SIZE])[0].scores.max().item() for image in make_images()]
    detector.config = detector.roi_heads.config = replace(detector.config, score_threshold=sum(best) / 2)
    assert {len(detector(image, [SIZE])[0].scores) > 0 for image in make_images()} == {True, False}
    return detector


# Two stages already refine boxes and average scores and masks; the third only costs time.
@pytest.mark.parametrize("stages", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_cascade_becomes_onnx(stages: int) -> None:
    detector = make_detector(cascade_mask_rcnn_config, "test_resnet", stages=CASCADE_STAGES[:stages])
    model = export.ExportableDetector(detector)
    content = export_model(model, make_images()[0], "onnx", outputs=Detections._fields)
    result = export.check_export(model, load_runner(content, "onnx"), make_images())
    assert result.total > 0 and result.unmatched == 0
    assert result.boxes < 1e-3


def test_command_exports_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = make_detector(mask_rcnn_config, "test_resnet")
    setting = Setting({7: "cat", 9: "dog", 11: "bird"}, EvalTransform(60, 96), Normalize(), 32)
    checkpoint, path = tmp_path / "last.pth.tar", tmp_path / "detector.pt2"
    torch.save({"state_dict": detector.state_dict(), **describe(detector.config, setting)}, checkpoint)
    dispatch(f"export --checkpoint {checkpoint} --format torch --output {path}".split(), group="detection")
    assert "detections are the same" in capsys.readouterr().out
    described = json.loads((tmp_path / "detector.pt2.json").read_text())
    assert described["input"] == {"name": "images", "shape": [1, 3, *SIZE], "dtype": "float32"}
    assert [output["name"] for output in described["outputs"]] == ["boxes", "scores", "labels", "mask_probs"]
    assert described["categories"][1] == {"id": 9, "name": "dog"}
    assert described["score_threshold"] == detector.config.score_threshold
    run = load_runner(path.read_bytes(), "torch")
    with torch.no_grad():
        for image in make_images():
            for ours, theirs in zip(run(image), detector(image, [SIZE])[0], strict=True):
                assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_detector_of_boxes_only_has_no_masks() -> None:
    model = export.ExportableDetector(make_detector(mask_rcnn_config, "test_resnet", mask_loss_weight=0.0))
    setting = Setting({1: "cat", 2: "dog", 3: "bird"}, EvalTransform(60, 96), Normalize(), 32)
    described = export.describe(model, setting, SIZE, "onnx")
    assert [output["name"] for output in described["outputs"]] == ["boxes", "scores", "labels"]
    result = export.check_export(model, lambda image: list(model(image)), make_images())
    assert result.total > 0 and result.masks == 0 and len(model(make_images()[0])) == 3


def test_forms_for_graphs_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    corners = 80 * torch.rand(60, 2)
    boxes, scores, groups = torch.cat([corners, corners + 40 * torch.rand(60, 2)], 1), torch.rand(60), torch.arange(60)
    maps = [torch.randn(1, 4, 128 // stride, 128 // stride) for stride in (4, 8)]
    large = torch.tensor([[0.0, 0, 125, 120], [3, 3, 3, 3]])
    rois = [torch.cat([boxes, large])]
    for number in (60, 1, 0):
        expected = batched_nms(boxes[:number], scores[:number], groups[:number] % 3, 0.3)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            kept = suppress(boxes[:number], scores[:number], groups[:number] % 3, 0.3)
        assert kept.tolist() == expected.tolist()
    pooled = pool_rois(maps, (4, 8), rois, 7)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(pool_rois(maps, (4, 8), rois, 7), pooled)


def make_detections(*places: float, label: int = 0) -> Detections:
    boxes = torch.tensor([[x, 0.0, x + 10, 10] for x in places]).reshape(-1, 4)
    number = len(places)
    masks = torch.zeros(number, 28, 28)
    return Detections(boxes, torch.full((number,), 0.5), torch.full((number,), label), masks)


def test_detections_are_matched_in_any_order() -> None:
    ours, theirs = make_detections(0, 50), make_detections(50.0625, 0, 90)
    assert export.compare_detections(ours, theirs) == (3, 1, 0.0625, 0.0, 0.0)
    assert export.compare_detections(ours, make_detections(0, 50, label=1)) == (2, 2, 0.0, 0.0, 0.0)
    assert export.compare_detections(ours, make_detections()) == (2, 2, 0.0, 0.0, 0.0)
    assert export.compare_detections(make_detections(), make_detections()) == (0, 0, 0.0, 0.0, 0.0)
    theirs = theirs._replace(scores=torch.tensor([0.5, 0.75, 0.5]), mask_probs=theirs.mask_probs + 0.25)
    assert export.compare_detections(ours, theirs) == (3, 1, 0.0625, 0.25, 0.25)


@pytest.mark.parametrize("change", ["missing", "score", "nan"])
def test_differences_are_refused(change: str) -> None:
    good = make_detections(0, 50)
    bad = {
        "missing": make_detections(0),
        "score": good._replace(scores=good.scores + 1e-3),
        "nan": good._replace(mask_probs=good.mask_probs * torch.nan),
    }[change]
    images = [torch.zeros(1)]
    export.check_export(lambda image: good, lambda image: good, images)
    with pytest.raises(UserError, match="the export differs from PyTorch: "):
        export.check_export(lambda image: good, lambda image: bad, images)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--output a.onnx", "pass either --checkpoint FILE, or --model NAME"),
        ("--output a.onnx --model test_resnet --checkpoint a.pth", "pass either --checkpoint FILE, or --model NAME"),
        ("--output a.pt2 --model test_resnet", "a file of --format onnx ends in .onnx"),
        ("--output a.pt2 --format torch --model test_resnt", "did you mean test_resnet"),
    ],
)
def test_mistakes_are_named(argv: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected):
        dispatch(["export", *argv.split()], group="detection")
