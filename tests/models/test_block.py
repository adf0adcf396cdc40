"""Both block families against a slow form, and further properties of the explicit-DWT block."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from models.slow_block import slow_block
from parity import fill_by_key, relative_error
from torch import nn

from wsfvit.layers import InterSubbandAttention, from_subbands, to_subbands
from wsfvit.models.wsfvit import WSFBlock, WSFViTCfg

STUDY = Path(__file__).parents[2] / "configs" / "cifar10" / "study_wsf_block.yaml"
STUDY_OPTIONS = ["joint_subband_norm", "full_subband_scale"]
CFG = WSFViTCfg(
    embed_dims=(16,), depths=(1,), inter_heads=(2,), head_dim=8, stem_width=8, head_hidden_size=16, stage_strides=(2,)
)


def create_block(explicit_dwt: bool, stride: int = 2, window: tuple[int, int] = (3, 4), **fields: bool) -> WSFBlock:
    cfg = dataclasses.replace(CFG, explicit_dwt=explicit_dwt, **fields)
    block = WSFBlock(8 if stride == 2 else 16, 16, cfg, 2, window, stride=stride, explicit_dwt=explicit_dwt)
    return fill_by_key(block).eval()


# Maps behind the MBConv: divided by the window, odd and padded, smaller than the window, a single row, one token.
@pytest.mark.parametrize("map_size", [(12, 16), (6, 8), (7, 9), (13, 5), (2, 3), (1, 6), (1, 1)])
@pytest.mark.parametrize("explicit_dwt", [False, True])
def test_block_agrees_with_the_slow_form(explicit_dwt: bool, map_size: tuple[int, int]) -> None:
    block = create_block(explicit_dwt, stride=1)
    x = torch.randn(2, 16, *map_size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(block(x), slow_block(x, block)) < 1e-10


@pytest.mark.parametrize("explicit_dwt", [False, True])
def test_strided_block_agrees_with_the_slow_form(explicit_dwt: bool) -> None:
    block = create_block(explicit_dwt)
    x = torch.randn(2, 8, 21, 18, dtype=torch.float64)
    with torch.no_grad():
        actual = block(x)
        assert actual.shape == (2, 16, 11, 9)
        assert relative_error(actual, slow_block(x, block)) < 1e-10


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
@pytest.mark.parametrize("explicit_dwt", [False, True])
def test_every_parameter_gets_a_gradient(explicit_dwt: bool, size: tuple[int, int]) -> None:
    block = create_block(explicit_dwt)
    block(torch.randn(2, 8, *(2 * s for s in size), dtype=torch.float64)).square().mean().backward()
    assert not [name for name, p in block.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


@pytest.mark.parametrize("num_subbands", [1, 4])
def test_every_subband_changes_every_other_one(num_subbands: int) -> None:
    part = fill_by_key(InterSubbandAttention(16, 2, num_subbands=num_subbands)).eval()
    x = torch.randn(4, 16, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        before = part(x)
        for source in range(4):
            changed = x.clone()
            changed[source] += 0.1 * torch.randn_like(changed[source])
            reached = [bool((part(changed)[k] - before[k]).abs().max() > 1e-6) for k in range(4)]
            assert reached == [num_subbands == 4 or k == source for k in range(4)]


def test_images_do_not_mix() -> None:
    block = create_block(True, stride=1)
    x = torch.randn(3, 16, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        together, alone = block(x), torch.cat([block(image[None]) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_subband_folding_round_trip(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 5, *size, dtype=torch.float64).to(memory_format=memory_format)
    folded = to_subbands(x)
    assert folded.shape == (8, 5, -(-size[0] // 2), -(-size[1] // 2))
    torch.testing.assert_close(from_subbands(folded, size), x)


def test_channels_last_maps_reach_the_attention_without_a_copy() -> None:
    folded = to_subbands(torch.randn(2, 5, 8, 6).to(memory_format=torch.channels_last))
    assert folded.is_contiguous(memory_format=torch.channels_last)
    assert from_subbands(folded, (8, 6)).is_contiguous(memory_format=torch.channels_last)


def test_study_options_are_off_and_change_the_output() -> None:
    x = torch.randn(2, 16, 9, 8, dtype=torch.float64)
    plain = create_block(True, stride=1)
    assert type(plain.attn_local.norm1) is nn.LayerNorm
    with torch.no_grad():
        outputs = [plain(x)]
        for option in STUDY_OPTIONS:
            outputs.append(create_block(True, stride=1, **{option: True})(x))
    assert all(relative_error(a, b) > 1e-4 for i, a in enumerate(outputs) for b in outputs[:i])


def test_each_study_option_is_a_row_of_the_study() -> None:
    systems = yaml.safe_load(STUDY.read_text())["systems"].values()
    assert [key for system in systems for key in system["model_kwargs"] if key != "window_size"] == STUDY_OPTIONS


def test_joint_norm_keeps_the_relative_energy_of_subbands() -> None:
    norm = create_block(True, joint_subband_norm=True).attn_local.norm1
    nn.init.ones_(norm.weight), nn.init.zeros_(norm.bias)
    x = torch.randn(4, 3, 3, 16, dtype=torch.float64) * torch.tensor([8.0, 2.0, 1.0, 0.5]).view(4, 1, 1, 1)
    joint = torch.cat(list(x), dim=-1)
    expected = (joint - joint.mean(-1, keepdim=True)) / torch.sqrt(joint.var(-1, correction=0, keepdim=True) + norm.eps)
    torch.testing.assert_close(torch.cat(list(norm(x)), dim=-1), expected)
