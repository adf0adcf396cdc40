"""The detection benchmark: ours and torchvision's detector meet the same images and objects, for equal work."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import detection
from benchmarks.detection import PEER, Candidate
from benchmarks.timing import Timing
from wsfvit.utils.errors import UserError

OURS = "mask_rcnn:wsfvit_p0_224"
COUNTS = {"roi_samples": 8, "rpn_samples": 16, "max_detections": 5}
COUNTS |= dict.fromkeys(("candidates_train", "candidates_test", "proposals_train", "proposals_test"), 20)
NARROW = {"embed_dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1), "head_dim": 16, "stem_width": 16, "window_size": 4}
SMALL = ["--detectors", OURS, PEER, "--size", "48", "64", "--batch-size", "1", "--num-classes", "80", "--threads", "1"]
SMALL += ["--model-kwargs", *(f"{key}={value}" for key, value in NARROW.items()), "--detector-kwargs", "fpn_width=16"]
SMALL += ["fc_width=32", *(f"{key}={value}" for key, value in COUNTS.items()), "--warmup", "1", "--repeats", "1"]


def test_program_gives_both_the_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, list[torch.Tensor]] = {OURS: [], PEER: []}
    rois: list[int] = []
    objects = []
    build = detection.build_candidates

    def build_watched(*args: object) -> dict[str, Candidate]:
        candidates = build(*args)
        for name, each in candidates.items():
            each.model.backbone.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0]))
        heads = [candidates[OURS].model.roi_heads.box_heads[0], candidates[PEER].model.roi_heads.box_head]
        for head in heads:
            head.register_forward_pre_hook(lambda head, given: rois.append(len(given[0])) if head.training else None)
        candidates[PEER].model.roi_heads.register_forward_pre_hook(lambda _, given: objects.append(given[3]))
        objects.append(candidates[OURS].losses.args[2])
        return candidates

    monkeypatch.setattr(detection, "build_candidates", build_watched)
    out = tmp_path / "run.json"
    detection.main([*SMALL, "--channels-last", "--out", str(out)])

    # torchvision's transform pads to 64 x 64 as ours does, and changes nothing else.
    torch.testing.assert_close(seen[PEER][0], seen[OURS][0], rtol=0, atol=1e-6)
    ours, theirs = objects[0][0], objects[1][0]
    torch.testing.assert_close(theirs["boxes"], ours["boxes"])
    assert torch.equal(theirs["masks"], ours["masks"]) and torch.equal(theirs["labels"], ours["labels"] + 1)
    assert set(rois) == {COUNTS["roi_samples"]}

    records = json.loads(out.read_text())["results"]
    assert [(r["mode"], r["detector"]) for r in records] == [
        (mode, name) for mode in ("training", "inference") for name in (OURS, PEER)
    ]
    for record in records:
        assert record["images_per_second"] == pytest.approx(1 / record["median"])
        # Weights in float32, and AdamW's two moments of each.
        copies = 3 if record["mode"] == "training" else 1
        assert record["held_memory"] == pytest.approx(4 * copies * record["params"], rel=0.02)
        assert record.get("detections_per_image", 5.0) == COUNTS["max_detections"]
        assert record.get("loss", 1.0) > 0
    assert [r["speed"] for r in records if r["detector"] == PEER] == [1.0, 1.0]
    assert f"speed vs {PEER}" in capsys.readouterr().out


def test_bfloat16_without_the_peer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lower = []
    build = detection.build_candidates

    def build_watched(*args: object) -> dict[str, Candidate]:
        candidates = build(*args)
        candidates[OURS].model.register_forward_pre_hook(lambda *_: lower.append(torch.is_autocast_enabled("cpu")))
        return candidates

    monkeypatch.setattr(detection, "build_candidates", build_watched)
    detection.main([*SMALL, "--detectors", OURS, "--precision", "bfloat16"])
    assert lower and all(lower)
    assert f"| {PEER}" not in capsys.readouterr().out


def test_peak_memory_counts_weights_and_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    timing = asdict(Timing(median=1.0, q20=1.0, q80=1.0, repeats=1, calls_per_sample=1, peak_memory=3 * 2**20))
    record = {"mode": "training", "detector": OURS, "params": 0, "images_per_second": 1.0, "speed": None}
    detection.print_tables([record | timing | {"held_memory": 2**20}])
    assert " 4.0 " in capsys.readouterr().out


def test_training_that_diverges_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(2, 2)
    monkeypatch.setattr(
        detection,
        "build_candidates",
        lambda *_: {OURS: Candidate(layer, lambda: {"loss": layer.weight.sum() * float("inf")}, list, [])},
    )
    with pytest.raises(UserError, match="its loss became"):
        detection.main([*SMALL, "--detectors", OURS])


def test_unknown_backbone_is_one_line() -> None:
    with pytest.raises(UserError, match="no_such_model"):
        detection.main(["--detectors", "mask_rcnn:no_such_model"])


@pytest.mark.parametrize(
    "wrong", [["--detectors", "wsfvit_t_224"], ["--size", "16", "64"], ["--num-classes", "2"], ["--batch-size", "0"]]
)
def test_settings_that_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        detection.parse_args(wrong)
    assert wrong[0] in capsys.readouterr().err
