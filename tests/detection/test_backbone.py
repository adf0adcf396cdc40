"""Backbones against the published pyramids, at any image size, in training, and given a classifier's weights."""

import logging
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import timm
import torch
import torch.nn.functional as F
from detection_parity import load_fixture
from torch import Tensor

from wsfvit.detection.model.backbone import DetectionBackbone
from wsfvit.utils.errors import UserError

TINY = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), inter_heads=(2, 4, 4, 8), head_dim=4, stem_width=8)
# One small model of each kind: model, options, what its image sides must be padded to.
FAMILIES = [
    ("wsfvit_p0_224", TINY, 32),
    ("wsfvit_dwt_p0_224", TINY, 32),
    ("resnet10t", {}, 32),
    ("convnext_atto", dict(depths=(1, 1, 1, 1)), 32),
    ("swin_tiny_patch4_window7_224", dict(embed_dim=24, depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 6)), 32),
    ("maxvit_rmlp_pico_rw_256", dict(img_size=64), 64),
]


def reference_key(key: str) -> str:
    """What the reference calls an entry of our backbone's state dict."""
    norm, _, rest = key.partition(".")
    if norm == "body":
        return rest.removeprefix("model.")
    index, name = rest.split(".")
    return f"norm{index}.norm.{name}"


def fill_value(key: str, like: Tensor) -> Tensor:
    """The filling rule of `parity`, with one gain for all matrices."""
    if like.ndim < 2 or "dwt_l2" in key:
        return parity.fill_value(key, like)
    r = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    return r / math.sqrt(r.numel() / r.shape[0])


def fill(backbone: DetectionBackbone) -> DetectionBackbone:
    for key, value in backbone.state_dict().items():
        if value.is_floating_point():
            value.copy_(fill_value(reference_key(key), value))
    return backbone.eval()


@torch.no_grad()
def run_as_published(name: str, **options: Any) -> tuple[DetectionBackbone, list[Tensor]]:
    backbone = fill(DetectionBackbone(name, **options))
    return backbone, backbone(torch.randn(1, 3, 224, 448, generator=torch.Generator().manual_seed(0)))


def misses(maps: list[Tensor], fixture: dict[str, np.ndarray], level: int) -> bool:
    """Whether a map is outside the fixture's tolerance."""
    expected, step = torch.from_numpy(fixture[f"p{level}"]), int(fixture[f"p{level}_step"])
    assert list(maps[level].shape) == fixture[f"p{level}_shape"].tolist()
    scale = float(fixture[f"p{level}_stats"][2])  # the largest magnitude
    return not torch.allclose(maps[level].flatten()[::step], expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(("heads", "other"), [("2-4-8-16", "4-8-16-32"), ("4-8-16-32", "2-4-8-16")])
def test_published_pyramid_of_t_with_either_heads(heads: str, other: str) -> None:
    options = {} if heads == "2-4-8-16" else {"inter_heads": (4, 8, 16, 32)}  # the classifier's are the default
    backbone, maps = run_as_published("wsfvit_t_224", **options)
    assert sum(p.numel() for p in backbone.parameters()) == 22_497_004
    ours, theirs = (load_fixture(f"det_backbone_t_heads{h}_parity") for h in (heads, other))
    for level in range(4):
        assert not misses(maps, ours, level)
        assert misses(maps, theirs, level)


@pytest.mark.parametrize(
    ("size", "params", "channels"), [("s", 40_950_944, (64, 128, 256, 512)), ("m", 68_618_600, (80, 160, 320, 640))]
)
def test_published_pyramids(size: str, params: int, channels: tuple[int, ...]) -> None:
    backbone, maps = run_as_published(f"wsfvit_{size}_224")
    assert sum(p.numel() for p in backbone.parameters()) == params
    assert backbone.channels == channels and backbone.strides == (4, 8, 16, 32)
    fixture = load_fixture(f"det_backbone_{size}_parity")
    assert not any(misses(maps, fixture, level) for level in range(4))


@pytest.mark.parametrize(("name", "options", "multiple"), FAMILIES, ids=[name for name, *_ in FAMILIES])
def test_any_family_takes_any_size(name: str, options: dict[str, Any], multiple: int) -> None:
    torch.manual_seed(0)
    backbone = DetectionBackbone(name, **options).eval()
    assert backbone.multiple == multiple and backbone.strides == (4, 8, 16, 32)
    for H, W in ((64, 128), (33, 100), (131, 64)):
        image = torch.randn(2, 3, H, W)
        with torch.no_grad():
            maps = backbone(image)
            plain = backbone.body(F.pad(image, (0, -W % multiple, 0, -H % multiple)))
        for x, raw, channels, stride, norm in zip(
            maps, plain, backbone.channels, backbone.strides, backbone.norms, strict=True
        ):
            h, w = -(-H // stride), -(-W // stride)
            assert x.shape == (2, channels, h, w)
            raw = raw if backbone.channels_last else raw.permute(0, 2, 3, 1)
            torch.testing.assert_close(x, norm(raw).permute(0, 3, 1, 2)[:, :, :h, :w])
            # A fresh LayerNorm leaves every place with mean 0 and variance 1 over its channels.
            torch.testing.assert_close(x.mean(1), torch.zeros(2, h, w), atol=1e-5, rtol=0)


def test_every_parameter_is_trained_and_statistics_are_kept_on_request() -> None:
    for frozen in (True, False):
        backbone = DetectionBackbone("wsfvit_p0_224", frozen_stats=frozen, **TINY)
        before = {key: value.clone() for key, value in backbone.named_buffers()}
        backbone.train()
        sum(x.square().sum() for x in backbone(torch.randn(2, 3, 64, 64))).backward()
        assert all(p.grad is not None for p in backbone.parameters())
        moved = {key for key, value in backbone.named_buffers() if not torch.equal(value, before[key])}
        statistics = {key for key in before if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
        assert moved == (set() if frozen else statistics)


def test_options_reach_the_model() -> None:
    backbone = DetectionBackbone(
        "wsfvit_p0_224", drop_path_rate=0.2, output_norm=False, **TINY | {"depths": [1, 1, 2, 1]}
    )
    rates = [round(m.drop_prob, 3) for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert sorted(set(rates)) == [0.05, 0.1, 0.15, 0.2]  # the first block's is 0
    assert not list(backbone.norms.parameters())
    assert [len(stage.blocks) for stage in backbone.body.model.stages] == [1, 1, 2, 1]


def test_weights_depend_on_the_seed_alone() -> None:
    first, second = [], []
    for weights in (first, second):  # the second time, how the model is built is already known
        torch.manual_seed(3)
        weights += DetectionBackbone("wsfvit_p0_224", **TINY, head_hidden_size=40).parameters()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_backbone_can_be_exported() -> None:
    backbone = DetectionBackbone("resnet10t").eval().requires_grad_(False)
    images = torch.randn(1, 3, 40, 64)  # one side is padded
    program = torch.export.export(backbone, (images,))
    for ours, exported in zip(backbone(images), program.module()(images), strict=True):
        torch.testing.assert_close(exported, ours)


def save_classifier(path: Path, name: str, **options: Any) -> dict[str, Tensor]:
    state = timm.create_model(name, num_classes=5, **options).state_dict()
    torch.save({"state_dict": state, "arch": name}, path)
    return state


@pytest.mark.parametrize(
    ("name", "options", "prefix", "head"),
    [
        ("wsfvit_p0_224", TINY, "model.", {"head.norm", "head.pre_logits.fc", "head.fc"}),
        ("convnext_atto", dict(depths=(1, 1, 1, 1)), "", {"head.norm", "head.fc"}),
        ("resnet10t", {}, "", {"fc"}),
    ],
)
def test_classifier_weights_go_in_without_the_head(
    name: str, options: dict[str, Any], prefix: str, head: set[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "classifier.pth.tar"
    state = save_classifier(path, name, **options)
    backbone = DetectionBackbone(name, **options)
    with caplog.at_level(logging.INFO):
        left_out = backbone.load_classifier(path)
    assert {key.rsplit(".", 1)[0] for key in left_out} == head
    assert all(key in caplog.text for key in left_out)
    own = backbone.body.state_dict()
    kept = {key: value for key, value in state.items() if key not in left_out}
    assert len(kept) == len(own)
    assert all(any(torch.equal(value, mine) for mine in own.values()) for value in kept.values())
    if prefix:
        assert all(torch.equal(own[prefix + key], value) for key, value in kept.items())


def test_names_of_the_published_detector_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "classifier.pth"
    state = save_classifier(path, "wsfvit_p0_224", **TINY)
    theirs = {"attn_local": "attn_block", "attn_inter": "attn_channel", "attn_global": "attn_grid"}
    for ours, other in theirs.items():
        assert any(ours in key for key in state)
        state = {key.replace(ours, other): value for key, value in state.items()}
    torch.save(state, path)
    backbone = DetectionBackbone("wsfvit_p0_224", **TINY)
    backbone.load_classifier(path)
    name = "stages.1.blocks.0.{}.attn.qkv.weight"
    own = backbone.body.model.state_dict()
    assert torch.equal(own[name.format("attn_inter")], state[name.format("attn_channel")])


def test_misfits_are_refused_and_windows_resized_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "classifier.pth"
    backbone = DetectionBackbone("wsfvit_p0_224", **TINY)
    state = save_classifier(path, "wsfvit_p0_224", **TINY)
    before = backbone.body.model.stem.conv1.weight.clone()
    for change, complaint in (
        (lambda s: s.pop("stages.0.blocks.0.attn_local.attn.qkv.weight"), "1 missing"),
        (lambda s: s.update({"stages.0.blocks.7.ls": torch.zeros(1)}), "1 unexpected"),
        (lambda s: s.update({"stem.conv1.weight": torch.zeros(8, 12, 5, 5)}), "1 of another shape"),
    ):
        wrong = dict(state)
        change(wrong)
        torch.save(wrong, path)
        with pytest.raises(UserError, match=complaint):
            backbone.load_classifier(path)
        assert torch.equal(backbone.body.model.stem.conv1.weight, before)
    save_classifier(path, "wsfvit_p0_224", img_size=96, **TINY)
    with pytest.raises(UserError, match="another window"):
        backbone.load_classifier(path)
    backbone.load_classifier(path, resize_bias_tables=True)
    assert "Resized" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("wsfvit_t_242", {}, "did you mean wsfvit_t_224"),
        ("vit_tiny_patch16_224", {}, "strides"),
        ("hiera_tiny_224", dict(stages=(1, 1, 1, 1)), "only images of 224 x 224 pixels"),
        ("wsfvit_t_224", dict(depth=3), "cannot be built as a backbone with depth=3"),
    ],
)
def test_what_cannot_be_a_backbone_says_why(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        DetectionBackbone(name, **options)
