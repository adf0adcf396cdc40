"""Any height and width, by plain forward and by img_size, and padding that nobody can see."""

import pytest
import timm
import torch
import torch.nn.functional as F
from models.test_contract import TINY_NAMES, create_tiny
from torch import Tensor

import wsfvit  # noqa: F401
from wsfvit.layers import attention, partition

SIZES = [(32, 32), (97, 131), (224, 320), (256, 256), (448, 448)]


@pytest.mark.parametrize("by_img_size", [False, True], ids=["plain", "img_size"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", TINY_NAMES)
def test_forward_and_backward(name: str, size: tuple[int, int], by_img_size: bool) -> None:
    model = create_tiny(name, img_size=size if by_img_size else 224)
    expected = (-(-size[0] // 32), -(-size[1] // 32)) if by_img_size else (7, 7)
    parts = [part for s in model.stages for b in s.blocks for part in (b.attn_local, b.attn_global)]
    assert all(part.window_size == expected for part in parts)
    model(torch.randn(2, 3, *size)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    features = model.eval().forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
    for feature, info in zip(features, model.feature_info, strict=True):
        assert feature.shape[2:] == (-(-size[0] // info["reduction"]), -(-size[1] // info["reduction"]))


@pytest.mark.parametrize("size", [(97, 131), (250, 330)], ids=str)
@pytest.mark.parametrize("name", TINY_NAMES)
def test_padding_never_leaks(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the padding, the output is the same to the last bit."""
    model, x = create_tiny(name, img_size=224).eval(), torch.randn(2, 3, *size)
    outputs, padded = [], 0
    for value in (0.0, 1e4, -37.0):

        def pad_with_value(x: Tensor, window: tuple[int, int], value: float = value) -> Tensor:
            nonlocal padded
            pad_h, pad_w = -x.shape[1] % window[0], -x.shape[2] % window[1]
            padded += pad_h + pad_w
            return F.pad(x, (0, 0, 0, pad_w, 0, pad_h), value=value)

        monkeypatch.setattr(attention, "pad_to_multiple", pad_with_value)
        with torch.inference_mode():
            outputs.append(model(x))
    assert padded > 0
    assert all(torch.equal(outputs[0], out) for out in outputs[1:])


@pytest.mark.parametrize("name", TINY_NAMES)
@pytest.mark.parametrize("size", [(224, 224), (448, 224)], ids=str)
def test_sizes_that_divide_take_the_unpadded_path(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = create_tiny(name, img_size=224).eval(), torch.randn(1, 3, *size)
    with torch.inference_mode():
        expected = model(x)
        monkeypatch.setattr(attention, "pad_to_multiple", lambda x, size: x)
        monkeypatch.setattr(attention, "padding_mask", lambda *args: None)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_sizes_that_do_not_divide_need_the_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counterpart: without the mask the padding would be attended to."""
    model, x = create_tiny(name, img_size=224).eval(), torch.randn(1, 3, 97, 131)
    with torch.inference_mode():
        expected = model(x)
        real = partition.padding_mask
        monkeypatch.setattr(
            attention, "padding_mask", lambda *a: None if (m := real(*a)) is None else torch.ones_like(m)
        )
        assert not torch.allclose(model(x), expected)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_set_input_size_equals_building_at_that_size(name: str) -> None:
    model = create_tiny(name, img_size=224).eval()
    built = create_tiny(name, img_size=(160, 320)).eval()
    built.load_state_dict(model.state_dict())
    model.set_input_size((160, 320))
    x = torch.randn(1, 3, 160, 320)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), built(x), rtol=0, atol=0)
    assert model.stages[0].blocks[0].attn_local.window_size == (5, 10)
    model.set_input_size(window_size=4)
    assert model.stages[0].blocks[0].attn_global.window_size == (4, 4)
    assert model(x).shape == (1, 7)
    model.set_input_size(224)
    assert model.stages[3].blocks[0].attn_local.attn.rel_pos.relative_position_bias_table.shape[1:] == (13, 13)


def test_window_size_overrides_img_size() -> None:
    model = timm.create_model("wsfvit_p0_224", img_size=448, window_size=(7, 8))
    assert model.stages[1].blocks[0].attn_local.window_size == (7, 8)
    assert model.img_size == (448, 448)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_bias_of_a_map_smaller_than_the_window(name: str) -> None:
    """A clamped window uses the offsets that occur in it, not a resized table."""
    rel_pos = create_tiny(name, img_size=224).stages[0].blocks[0].attn_local.attn.rel_pos
    torch.nn.init.normal_(rel_pos.relative_position_bias_table)
    full, small = rel_pos().view(-1, 7, 7, 7, 7), rel_pos((3, 5)).view(-1, 3, 5, 3, 5)
    assert torch.equal(full[:, :3, :5, :3, :5], small)
