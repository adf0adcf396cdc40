"""Complexity figures against hand computation."""

import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import get_flops
from wsfvit.engine import flops
from wsfvit.engine.flops import count_complexity


class ConvLinearAttention(nn.Module):
    """One convolution, one linear layer and one fused attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)  # (B, 16, 8)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)  # each (B, 2, 16, 4)
        return F.scaled_dot_product_attention(q, k, v).sum()


@pytest.mark.parametrize("batch", [1, 2])
def test_conv_linear_attention_by_hand(batch):
    found = count_complexity(ConvLinearAttention(), torch.zeros(batch, 3, 8, 8))
    conv = 4 * 4 * 8 * 3 * 9
    linear = 16 * 8 * 24
    attention = 2 * 2 * 16 * 16 * 4  # two products of 2 heads, 16 x 16 tokens, width 4
    assert found.macs == batch * (conv + linear + attention)
    assert found.activations == batch * (16 * 8 + 16 * 24 + 2 * 16 * 4)
    assert found.params == 3 * 8 * 9 + 8 * 24
    assert not found.unknown


def test_norms_count_by_fvcore_rules():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(2), nn.LayerNorm(9))
    assert count_complexity(model, torch.zeros(1, 4, 3, 3)).macs == 36 * 2 + 36 * 5


def test_cross_attention_of_unequal_lengths():
    class Cross(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    found = count_complexity(Cross(), torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 7, 4), torch.zeros(1, 2, 7, 6))
    assert found.macs == 2 * 5 * 7 * (4 + 6)


def test_products_without_a_rule_are_named():
    class Unruled(nn.Module):
        def forward(self, x):
            return torch.fft.rfft2(torch.baddbmm(x, x, x)).abs() + x.mean()

    found = count_complexity(Unruled(), torch.zeros(2, 4, 4))
    assert {"aten::baddbmm", "aten::fft_rfft2"} == found.unknown.keys()
    assert "aten::abs" in found.uncounted


def test_custom_operators_are_named():
    assert flops._may_be_heavy("wsfvit::haar_dwt2d")
    assert flops._may_be_heavy("prim::PythonOp.Transform")
    assert not flops._may_be_heavy("aten::add_")


def test_attention_models_cost_the_same_fused_or_not(monkeypatch):
    def macs(fused):
        model = timm.create_model("test_vit")
        for block in model.blocks:
            block.attn.fused_attn = fused
        return count_complexity(model, torch.zeros(1, 3, 160, 160)).macs

    assert macs(True) == macs(False)


def test_command_prints_macs_and_flops(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", "x --model test_vit --img-size 32 --num-classes 10".split())
    get_flops.main()
    out = capsys.readouterr().out
    assert "input 1x3x32x32" in out and "2 x MACs" in out


def test_table_puts_published_figures_beside_its_own(monkeypatch, capsys):
    monkeypatch.setattr(flops.timm, "list_models", lambda pattern: ["test_vit", "test_resnet"])
    monkeypatch.setitem(flops.PUBLISHED, "test_vit", (0.4, 0.04))
    monkeypatch.setattr(sys, "argv", ["x", "--all"])
    get_flops.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.count("|") == 9 for line in lines)
    assert "| 0.4 |" in lines[2] and "| 0.04 |" in lines[2]


def test_unknown_model(monkeypatch, error_of):
    monkeypatch.setattr(sys, "argv", ["x", "--model", "test_vitt"])
    assert "did you mean test_vit" in error_of(get_flops.main)
