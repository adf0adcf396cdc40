"""What detectors cost: the published figures by the published rule, ours beside them, and the operators' rules."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from wsfvit.analysis.flop_counter import count_complexity
from wsfvit.detection.flops import TOTAL, PartCost, count_detector
from wsfvit.detection.model.config import cascade_mask_rcnn_config, mask_rcnn_config
from wsfvit.detection.model.detector import build_detector
from wsfvit.utils.errors import UserError
from wsfvit_cli import dispatch

TINY = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), inter_heads=(2, 4, 4, 8), head_dim=4, stem_width=8)


class Calls(nn.Module):
    """Runs a function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


@pytest.mark.parametrize(
    ("config", "params"),
    [(cascade_mask_rcnn_config("wsfvit_t_224"), 80_483_230), (cascade_mask_rcnn_config("wsfvit_s_224"), 98_937_170)],
    ids=["cascade_t", "cascade_s"],
)
def test_parameters_are_the_published_ones(config, params: int) -> None:
    with torch.device("meta"):
        detector = build_detector(config)
    assert sum(p.numel() for p in detector.parameters()) == params


# G MACs of the published code, parts and whole by its own rule, and the whole by fvcore.
@pytest.mark.parametrize(
    ("config", "params", "expected", "fvcore"),
    [
        (
            mask_rcnn_config("wsfvit_t_224", backbone_options={"inter_heads": (4, 8, 16, 32)}),
            42_648_028,
            {"backbone": 86.53, "FPN": 51.10, "RPN": 49.62, "box heads": 14.31, "mask heads": 53.07, TOTAL: 254.63},
            259.0,
        ),
        (
            cascade_mask_rcnn_config("wsfvit_m_224"),
            126_666_266,
            {"backbone": 237.79, "FPN": 51.58, "RPN": 49.62, "box heads": 386.7, "mask heads": 159.2, TOTAL: 884.95},
            894.3,
        ),
    ],
    ids=["mask_t", "cascade_m"],
)
def test_published_figures_by_both_rules(config, params: int, expected: dict[str, float], fvcore: float) -> None:
    parts = {part.name: part for part in count_detector(config)}
    assert parts.keys() == expected.keys()
    for name, macs in expected.items():
        assert parts[name].published / 1e9 == pytest.approx(macs, rel=5e-4)
    total = parts.pop(TOTAL)
    assert total.params == params
    assert total.macs / 1e9 == pytest.approx(fvcore, rel=2e-4)
    for figure in ("params", "published", "macs"):
        assert sum(getattr(part, figure) for part in parts.values()) == getattr(total, figure)


def test_heads_by_hand() -> None:
    config = mask_rcnn_config("wsfvit_p0_224", 5, backbone_options=TINY, fpn_width=16, fc_width=32)
    parts: dict[str, PartCost] = {p.name: p for p in count_detector(config, (64, 64), box_rois=7, mask_rois=3)}
    linear = 7 * (16 * 49 * 32 + 32 * 32 + 32 * (6 + 20))
    assert parts["box heads"].macs == parts["box heads"].published == linear
    cells, conv = 14 * 14, 16 * 16 * 9
    convs, up, logits = 4 * cells * conv, cells * 16 * 16 * 4, 4 * cells * 16 * 5
    assert parts["mask heads"].macs == 3 * (convs + up + logits)
    biases, relus = (4 * 16 + 4 * 16 + 4 * 5) * cells, (4 * 16 + 4 * 16) * cells
    assert parts["mask heads"].published == parts["mask heads"].macs + 3 * (biases + relus)
    places = 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1
    assert parts["RPN"].macs == places * (conv + 16 * 15)


def test_operators_of_a_whole_detection_have_rules() -> None:
    config = mask_rcnn_config("wsfvit_p0_224", 5, backbone_options=TINY, fpn_width=16, fc_width=32, score_threshold=0.0)
    torch.manual_seed(0)
    detector = build_detector(config)
    found = count_complexity(detector, torch.randn(2, 3, 64, 64), [(64, 64), (60, 50)])
    assert {"torchvision::roi_align", "torchvision::nms"} <= found.operators.keys()
    by_name = {module.name: module.cost.macs for module in found.modules}
    parts = {p.name: p.macs for p in count_detector(config, (64, 64))}
    assert by_name["backbone"] == 2 * parts["backbone"] and by_name["rpn.head"] == 2 * parts["RPN"]


@pytest.mark.parametrize(
    ("ratio", "device", "samples"),
    # Bins of 2.5 x 1.5 and 1 x 1 cells: 3 x 2 and 1 x 1 samples in each of 4; without values 2 x 2.
    [(0, "cpu", 4 * 6 + 4 * 1), (3, "cpu", 2 * 4 * 9), (0, "meta", 2 * 4 * 4)],
)
def test_roi_align_by_hand(ratio: int, device: str, samples: int) -> None:
    def pool(x: Tensor, rois: Tensor) -> Tensor:
        return roi_align(x, rois, 2, 0.5, ratio, aligned=True)

    rois = torch.tensor([[0.0, 1, 2, 11, 8], [0, 4, 4, 8, 8]], device=device)
    found = count_complexity(Calls(pool), torch.zeros(1, 6, 9, 9, device=device), rois)
    assert (found.macs, found.other_flops) == (0, 9 * 6 * samples)


def test_nms_by_hand() -> None:
    boxes = torch.rand(5, 4).sort(dim=1).values
    found = count_complexity(Calls(lambda boxes: nms(boxes, boxes[:, 0], 0.5)), boxes)
    assert found.other_flops == 14 * 10


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["wsfvit.detection", *argv])
    dispatch(group="detection")


def test_command_prints_and_writes_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["flops", "--model", "resnet10t", "--num-classes", "3", "--img-size", "64", "96"]
    run(monkeypatch, *argv, "--output", str(tmp_path))
    out, markdown = capsys.readouterr().out, (tmp_path / "flops.md").read_text()
    assert "| mask_rcnn | resnet10t | backbone |" in out and "| mask_rcnn | resnet10t | backbone |" in markdown
    assert " ".join(argv) in markdown
    *parts, total = csv.DictReader((tmp_path / "flops.csv").read_text().splitlines())
    assert total["part"] == TOTAL and int(total["macs"]) == sum(int(part["macs"]) for part in parts)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["flops", "--model", "wsfvit_t_242"], "did you mean wsfvit_t_224"),
        (["flops", "--output", "no/such/folder"], "no such folder"),
    ],
)
def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch, argv: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        run(monkeypatch, *argv)


def test_unknown_command_names_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "flop")
    assert end.value.code == 2 and "flops" in capsys.readouterr().err
