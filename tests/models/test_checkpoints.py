"""Loading weights through timm: the published layout at any size, and clear refusals."""

import logging
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from parity import fill_by_key, fill_value, load_manifest
from torch import nn

import wsfvit  # noqa: F401
from wsfvit.layers import RelPosBias
from wsfvit.models import describe_misfit

TABLE = "relative_position_bias_table"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the release's layout: a training checkpoint with argparse.Namespace and exactly the published keys."""
    shapes = load_manifest()["wsfvit_p0_224"]["state_dict"]
    state = {key: torch.empty(shape) for key, shape in shapes.items()}
    state = {
        key: torch.tensor(7) if key.endswith("num_batches_tracked") else fill_value(key, value).float()
        for key, value in state.items()
    }
    path = tmp_path_factory.mktemp("release") / "wsfvit_p0_224.pth.tar"
    args = Namespace(model="wsfvit_p0_224", opt="adamw", lr=3e-3)
    torch.save({"epoch": 299, "arch": "wsfvit_p0_224", "state_dict": state, "args": args, "version": 2}, path)
    return path


def load(path: Path, way: str, **kwargs: Any) -> nn.Module:
    if way == "checkpoint_path":
        return timm.create_model("wsfvit_p0_224", checkpoint_path=str(path), **kwargs)
    return timm.create_model("wsfvit_p0_224", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs)


WAYS = ["checkpoint_path", "pretrained_cfg_overlay"]


@pytest.mark.parametrize("way", WAYS)
def test_published_layout_loads_strictly(published: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    model = load(published, way)
    expected = fill_by_key(timm.create_model("wsfvit_p0_224")).float().state_dict()
    for key, value in model.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, expected[key]), key
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [32, 96, (160, 256), 384], ids=str)
def test_published_layout_loads_at_any_size(
    published: Path, way: str, size: int | tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    model = load(published, way, img_size=size)
    source = torch.load(published, weights_only=False)["state_dict"]
    H, W = (size, size) if isinstance(size, int) else size
    for key, value in model.state_dict().items():
        if key.endswith(TABLE):
            assert value.shape[1:] == (2 * (H // 32) - 1, 2 * (W // 32) - 1) and value.isfinite().all()
            centre = value[:, H // 32 - 1, W // 32 - 1]
            torch.testing.assert_close(centre, source[key][:, 6, 6], atol=1e-4, rtol=1e-3)
        else:
            assert torch.equal(value, source[key]), key
    lines = [r.getMessage() for r in caplog.records if "Resized" in r.getMessage()]
    sides = f"{2 * (H // 32) - 1}x{2 * (W // 32) - 1}"
    assert lines == [f"Resized relative position bias tables of the checkpoint: 10 from 13x13 to {sides}."]
    assert model.eval()(torch.randn(1, 3, H, W)).isfinite().all()


def test_load_state_dict_resizes_inside_any_wrapper_and_leaves_the_callers_dict() -> None:
    source = timm.create_model("wsfvit_p0_224").state_dict()
    wrapper = nn.Sequential(timm.create_model("wsfvit_p0_224", img_size=96))
    prefixed = {f"0.{key}": value for key, value in source.items()}
    wrapper.load_state_dict(prefixed)
    assert all(torch.equal(prefixed[f"0.{key}"], value) for key, value in source.items())


def test_tables_of_one_offset_grow() -> None:
    bias = RelPosBias((1, 1), 3)
    nn.init.normal_(bias.relative_position_bias_table)
    value = bias.relative_position_bias_table.detach().clone()
    bias.set_window_size((4, 2))
    torch.testing.assert_close(bias.relative_position_bias_table.detach(), value.expand(3, 7, 3))
    assert bias().shape == (3, 8, 8) and bias().requires_grad


def test_families_exchange_weights(published: Path) -> None:
    published_model = load(published, "checkpoint_path")
    dwt = timm.create_model("wsfvit_dwt_p0_224", checkpoint_path=str(published))
    assert all(torch.equal(a, b) for a, b in zip(dwt.parameters(), published_model.parameters(), strict=True))


@pytest.mark.parametrize("in_chans", [1, 5])
def test_pretrained_with_other_channels_and_classes(
    published: Path, in_chans: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(published, "pretrained_cfg_overlay", in_chans=in_chans, num_classes=10).eval()
    source = torch.load(published, weights_only=False)["state_dict"]
    conv = source["stem.conv1.weight"].view(24, 4, 3, 3, 3)
    adapted = model.stem.conv1.weight.detach().view(24, 4, in_chans, 3, 3)
    if in_chans == 1:
        torch.testing.assert_close(adapted, conv.sum(2, keepdim=True))
        expected_mean = source["stem.norm1.running_mean"].view(4, 3).mean(1)
        torch.testing.assert_close(model.stem.norm1.running_mean, expected_mean)
    else:
        torch.testing.assert_close(adapted[:, :, 3:], conv[:, :, :2] * 3 / 5)
    assert "Adapted the stem of the checkpoint from 3 to" in caplog.text
    assert "Loading unchanged" not in caplog.text
    assert model(torch.randn(1, in_chans, 64, 64)).shape == (1, 10)


def test_pretrained_features(published: Path) -> None:
    extractor = load(published, "pretrained_cfg_overlay", features_only=True, out_indices=(1, 4))
    source = torch.load(published, weights_only=False)["state_dict"]
    assert torch.equal(extractor.model.stem.conv2.weight.detach(), source["stem.conv2.weight"])


def test_wrong_class_count_says_so(published: Path) -> None:
    with pytest.raises(RuntimeError, match="has 1000 classes, the model wsfvit_p0_224 has 10: pass num_classes"):
        load(published, "checkpoint_path", num_classes=10)


def test_wrong_model_gives_one_sentence_and_changes_nothing(published: Path) -> None:
    with pytest.raises(RuntimeError, match="does not fit wsfvit_t_224 .* missing .* of another shape") as caught:
        timm.create_model("wsfvit_t_224", checkpoint_path=str(published))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    model = timm.create_model("wsfvit_p0_224", depths=(1, 1, 1, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="unexpected .stages.2.blocks.1"):
        model.load_state_dict(torch.load(published, weights_only=False)["state_dict"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_tables_with_other_heads_are_refused() -> None:
    state = timm.create_model("wsfvit_p0_224").state_dict()
    key = f"stages.0.blocks.0.attn_local.attn.rel_pos.{TABLE}"
    state[key] = torch.zeros(3, 13, 13)
    model = timm.create_model("wsfvit_p0_224", img_size=96)
    assert describe_misfit(model, state) is not None
    with pytest.raises(RuntimeError, match="1 of another shape"):
        model.load_state_dict(state)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["zip", "pickle", "truncated"])
@pytest.mark.parametrize("way", WAYS)
def test_bad_files_raise_and_execute_nothing(published: Path, tmp_path: Path, kind: str, way: str) -> None:
    path, marker = tmp_path / "bad.pth.tar", tmp_path / "executed"
    if kind == "zip":
        torch.save({"state_dict": Hostile(marker)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Hostile(marker)))
    else:
        path.write_bytes(published.read_bytes()[:100_000])
    with pytest.raises(RuntimeError, match="weights_only=True blocked|PytorchStreamReader failed"):
        load(path, way)
    assert not marker.exists()
