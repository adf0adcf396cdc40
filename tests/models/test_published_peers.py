"""Weights of the peers' authors load through timm as they are, under the authors' names; a misfit is one sentence."""

from pathlib import Path

import pytest
import timm
import torch
from peers import RELEASES, check_outputs_of_release, fill_value, load_case, save_release
from torch import Tensor

import wsfvit  # noqa: F401

GFN, GFN_KWARGS = RELEASES["gfn"][:2]


@pytest.mark.parametrize("release", RELEASES)
def test_create_model_loads_a_release(release: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, kwargs, _, _ = RELEASES[release]
    path = str(save_release(release, tmp_path))
    check_outputs_of_release(timm.create_model(name, **kwargs, num_classes=10, checkpoint_path=path), release)
    overlay = dict(file=path)
    pretrained = timm.create_model(name, **kwargs, pretrained=True, pretrained_cfg_overlay=overlay)
    check_outputs_of_release(pretrained, release)
    grey = timm.create_model(name, **kwargs, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=3)
    first_conv = grey.default_cfg["first_conv"]
    expected = pretrained.get_submodule(first_conv).weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.get_submodule(first_conv).weight, expected)
    assert grey(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    assert not caplog.records
    with pytest.raises(RuntimeError, match=f"it has 10 classes, the model {name} has 7: pass num_classes=10"):
        timm.create_model(name, **kwargs, num_classes=7, checkpoint_path=path)


def release_of_afno() -> dict[str, Tensor]:
    """The state dict of AFNO's ViT, which is GFNet's with other filters."""
    shapes = {key: shape for key, shape in load_case("gfnet_d48_depth2").shapes.items() if "complex" not in key}
    mixer = load_case("afno2d_d48_k4_t0p01").shapes
    shapes |= {f"blocks.{i}.{key}": shape for i in range(2) for key, shape in mixer.items()}
    return {key: fill_value(key, torch.empty(shape)) for key, shape in shapes.items()}


def test_afno() -> None:
    model = timm.create_model("afno_vit_xs_patch4_32", embed_dim=48, depth=2, num_blocks=4)
    published = release_of_afno()
    model.load_state_dict(published)
    assert torch.equal(model.blocks[1].mixer.b2, published["blocks.1.filter.b2"])
    assert torch.equal(model.head.fc.weight, published["head.weight"])
    assert torch.equal(model.pos_embed.flatten(1, 2), published["pos_embed"])
    published["blocks.0.filter.bias.weight"] = torch.zeros(48, 48, 1)
    with pytest.raises(RuntimeError, match=r"1 unexpected \(blocks.0.mixer.bias.weight\)"):
        model.load_state_dict(published)


def test_filters_and_positions_of_another_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(save_release("gfn", tmp_path))
    large = timm.create_model(GFN, **GFN_KWARGS, img_size=(40, 52), checkpoint_path=path).eval()
    assert [r.getMessage() for r in caplog.records] == ["Resampled the checkpoint from a map of 8x8 tokens to 10x13."]
    small = timm.create_model(GFN, **GFN_KWARGS, checkpoint_path=path).eval()
    x = torch.randn(1, 3, 40, 52)
    torch.testing.assert_close(large(x), small(x), rtol=1e-4, atol=1e-4)


def test_positions_of_no_square_map_are_refused() -> None:
    model = timm.create_model(GFN, **GFN_KWARGS)
    shapes = load_case("gfnet_d48_depth2").shapes | {"pos_embed": [1, 60, 48]}
    with pytest.raises(RuntimeError, match=r"1 of another shape \(pos_embed: \(1, 60, 48\) for \(1, 8, 8, 48\)\)"):
        model.load_state_dict({key: torch.zeros(shape) for key, shape in shapes.items()})
