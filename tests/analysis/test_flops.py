"""Complexity figures against hand computation, fvcore and the published table."""

import csv
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import get_flops
from wsfvit.analysis import flops
from wsfvit.analysis.flop_counter import UnknownOperators, count_complexity
from wsfvit.analysis.flop_rules import RULES, Cost, register_flop_rule
from wsfvit.cli.tools import flops_parser
from wsfvit.wavelets import haar_dwt2d, haar_idwt2d


class Calls(nn.Module):
    """Runs a function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class ConvLinearAttention(nn.Module):
    """One convolution, one linear layer and one attention, fused or written out."""

    def __init__(self, fused=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.fused = fused

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)  # (B, 16, 8)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)  # each (B, 2, 16, 4)
        if self.fused:
            return F.scaled_dot_product_attention(query=q, key=k, value=v)
        return (q @ k.mT * 0.5).softmax(-1) @ v


def count(function, *shapes, **kwargs):
    return count_complexity(Calls(function), *(torch.zeros(shape, **kwargs) for shape in shapes))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("fused", [True, False])
def test_conv_linear_attention_by_hand(batch, device, fused):
    found = count_complexity(ConvLinearAttention(fused).to(device), torch.zeros(batch, 3, 8, 8, device=device))
    conv, linear = 4 * 4 * 8 * 3 * 9, 16 * 8 * 24
    attention = 2 * 2 * 16 * 16 * 4  # two products of 2 heads, 16 x 16 tokens, width 4
    maps = 0 if fused else 2 * 16 * 16
    assert found.macs == batch * (conv + linear + attention)
    assert found.activations == batch * (16 * 8 + 16 * 24 + 2 * 16 * 4 + maps)
    assert found.params == 3 * 8 * 9 + 8 * 24
    assert found.other_flops == batch * 2 * 16 * 16 * (7 if fused else 6)  # fused: as if there were a mask to add
    by_name = {module.name: module.cost.macs for module in found.modules}
    assert by_name == {"": found.macs, "conv": batch * conv, "qkv": batch * linear}


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (F.scaled_dot_product_attention, [(1, 2, 5, 4), (1, 2, 7, 4), (1, 2, 7, 6)], 2 * 5 * 7 * (4 + 6)),
        (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (lambda a, b: torch.einsum("bik,bjk->bij", a, b), [(2, 3, 4), (2, 5, 4)], 2 * 3 * 5 * 4),
        (torch.mv, [(3, 4), (4,)], 12),
        (torch.dot, [(4,), (4,)], 4),
        (torch.addmv, [(3,), (3, 4), (4,)], 12),
        (lambda x, w: F.conv2d(x, w, groups=2), [(1, 4, 5, 5), (6, 2, 3, 3)], 3 * 3 * 6 * 2 * 9),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), [(1, 4, 5, 5), (4, 6, 2, 2)], 25 * 4 * 6 * 4),
        (nn.LayerNorm(9), [(1, 4, 9)], 36 * 5),
        (nn.LayerNorm(9, elementwise_affine=False), [(1, 4, 9)], 36 * 4),
        (nn.GroupNorm(2, 4), [(1, 4, 3, 3)], 36 * 5),
        (nn.BatchNorm2d(4).eval(), [(1, 4, 3, 3)], 36 * 2),
        (nn.BatchNorm2d(4, affine=False).eval(), [(1, 4, 3, 3)], 36),
        (nn.InstanceNorm2d(4), [(1, 4, 3, 3)], 36 * 4),
    ],
)
def test_macs_by_hand(function, shapes, macs):
    assert count(function, *shapes).macs == macs


def test_complex_products_cost_four_real_ones():
    assert count(torch.matmul, (2, 3), (3, 5), dtype=torch.complex64).macs == 4 * 30


@pytest.mark.parametrize(
    ("function", "shape", "operations"),
    [
        (torch.tanh, (2, 3), 6),
        (lambda x: x.softmax(-1), (2, 3), 5 * 6),
        (lambda x: x.mean(1), (2, 3), 6),
        (lambda x: F.avg_pool2d(x, 2), (1, 1, 4, 4), 4 * 4),
        (lambda x: F.max_pool2d(x, 3, stride=1), (1, 1, 4, 4), 4 * 9),
        (lambda x: torch.fft.fft(torch.complex(x, x)), (16,), 5 * 16 * 4),
        (torch.fft.rfft2, (3, 8, 8), 3 * 64 * 6 * 5 // 2),
        # Haar: every pixel is halved, then takes part in one sum or difference per axis.
        (haar_dwt2d, (1, 3, 8, 8), 3 * 3 * 64),
        (haar_idwt2d, (1, 4, 3, 4, 4), 3 * 3 * 64),
        (lambda x: x.transpose(0, 1).contiguous().roll(1).repeat(2, 2), (4, 5), 0),
    ],
)
def test_arithmetic_outside_macs_by_hand(function, shape, operations):
    found = count(function, shape)
    assert found.macs == 0
    assert found.other_flops == operations


def test_an_operator_without_a_rule_is_an_error_until_it_has_one(monkeypatch):
    def distances(x):
        return torch.cdist(x, x) + torch.cdist(x, x)

    with pytest.raises(UnknownOperators, match=r"aten::_cdist_forward \(2 x.*register_flop_rule\('aten::_cdist_fo"):
        count(distances, (3, 5))
    monkeypatch.setitem(RULES, "aten::_cdist_forward", None)  # so that what is registered now goes after the test
    register_flop_rule("aten::_cdist_forward")(lambda inputs, output: Cost(output.numel() * inputs[0].shape[-1]))
    assert count(distances, (3, 5)).macs == 2 * 9 * 5


def test_custom_operators_are_not_passed_over():
    @torch.library.custom_op("wsfvit_test::negate", mutates_args=())
    def negate(x: torch.Tensor) -> torch.Tensor:
        return -x

    with pytest.raises(UnknownOperators, match="wsfvit_test::negate"):
        count(negate, (3,))


def test_the_model_is_left_as_it_was():
    model = ConvLinearAttention().train()
    count_complexity(model, torch.zeros(1, 3, 8, 8))
    assert model.training and model.conv.training
    assert not model.conv._forward_hooks and not model.conv._forward_pre_hooks


@pytest.mark.parametrize("name", ["wsfvit_p0_224", "wsfvit_dwt_p0_224", "test_convnext", "test_vit", "test_resnet"])
def test_macs_and_activations_equal_fvcores(name):
    fvcore = pytest.importorskip("fvcore.nn")
    from fvcore.nn.jit_handles import generic_activation_jit, get_shape

    def attention(inputs, outputs):  # fvcore counts it as nothing
        (*batch, n, d), (*_, m, _), (*_, e) = map(get_shape, inputs[:3])
        return torch.Size(batch).numel() * n * m * (d + e)

    model = timm.create_model(name, **({"img_size": 64} if "wsfvit" in name else {})).eval()
    size = 64 if "wsfvit" in name else model.pretrained_cfg["input_size"][-1]
    image, fused = torch.zeros(1, 3, size, size), "aten::scaled_dot_product_attention"
    macs = fvcore.FlopCountAnalysis(model, image).set_op_handle(fused, attention)
    elements = fvcore.ActivationCountAnalysis(model, image).set_op_handle(fused, generic_activation_jit())
    macs.set_op_handle("aten::adaptive_avg_pool2d", lambda *_: 0)  # here it is outside the MACs, like all pooling
    for analysis in (macs, elements):
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    found = count_complexity(model, image)
    assert (found.macs, found.activations) == (macs.total(), elements.total())


@pytest.mark.parametrize(
    "name", ["convnext_atto", "swin_tiny_patch4_window7_224", "maxvit_rmlp_pico_rw_256", "vit_tiny_patch16_224"]
)
def test_common_models_hold_no_unknown_operator(name):
    found, shape = flops.count_named(flops_parser().parse_args(["--model", name]), name)
    assert shape[0] == 1
    assert found.modules[0].cost.macs == found.macs > 0
    assert sum(module.cost.macs for module in found.modules if module.name and "." not in module.name) <= found.macs


@pytest.mark.parametrize("name", flops.PUBLISHED)
def test_published_rows_agree_with_the_recount(name):
    params, _, recounted = flops.PUBLISHED[name]
    found, _ = flops.count_named(flops_parser().parse_args([]), name)
    assert found.macs / 1e9 == pytest.approx(recounted, rel=0.005)
    assert found.params / 1e6 == pytest.approx(params, rel=0.01)


def run(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["get_flops.py", *argv])
    get_flops.main()
    return capsys.readouterr().out


def test_command_prints_figures_convention_and_modules(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "--model", "test_vit", "--img-size", "32", "--num-classes", "10")
    for part in (
        "input 1x3x32x32",
        "FLOPs outside MACs",
        "fvcore",
        "| blocks.0 |",
        "counted as MACs: addmm",
        "nothing: ",
    ):
        assert part in out
    assert "blocks.0.attn" not in out
    assert "blocks.0.attn.qkv" in run(monkeypatch, capsys, "--model", "test_vit", "--depth", "4")


def test_csv_holds_whole_numbers_that_add_up(monkeypatch, capsys):
    rows = list(csv.DictReader(run(monkeypatch, capsys, "--model", "test_vit", "--format", "csv").splitlines()))
    whole, *parts = rows
    assert whole["module"] == "" and float(whole["share"]) == 1
    outer = [row for row in parts if "." not in row["module"]]
    assert sum(int(row["macs"]) for row in outer) == int(whole["macs"])


def test_table_puts_published_figures_beside_its_own(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(flops.timm, "list_models", lambda pattern: ["test_resnet", "test_vit"])
    macs = flops.count_named(flops_parser().parse_args([]), "test_vit")[0].macs / 1e9
    monkeypatch.setitem(flops.PUBLISHED, "test_vit", (0.4, 0.04, macs / 1.1))
    path = tmp_path / "table.md"
    assert str(path) in run(monkeypatch, capsys, "--all", "--out", str(path))
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 4 and all(line.count("|") == 11 for line in lines)
    assert (
        "published MACs (G)" in lines[0]
        and lines[2].startswith("| test_vit ")
        and "| 0.4 | 0.04 |" in lines[2]
        and "| +10.00 |" in lines[2]
    )
    (first, second) = csv.DictReader(run(monkeypatch, capsys, "--all", "--format", "csv").splitlines())
    assert (first["difference (%)"], second["difference (%)"]) == ("+10.00", "")


def test_fvcore_is_a_second_opinion_beside_ours(monkeypatch, capsys):
    pytest.importorskip("fvcore.nn")
    argv = ["--model", "test_vit", "--counter", "fvcore"]
    whole, *parts = csv.DictReader(run(monkeypatch, capsys, *argv, "--format", "csv").splitlines())
    outside = sum(int(row["macs"]) - int(row["fvcore_macs"]) for row in parts if "." not in row["module"])
    assert 0 < int(whole["fvcore_macs"]) == int(whole["macs"]) - outside < int(whole["macs"])
    out = run(monkeypatch, capsys, *argv)
    assert "| fvcore (M) |" in out and "fvcore counts nothing for these operators: " in out
    assert "scaled_dot_product_attention (" in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--all", "--counter", "fvcore"], "pass --model NAME instead of --all"),
        (["--model", "test_vitt"], "did you mean test_vit"),
        (["--model", "test_vit", "--out", "no/such/folder/x.md"], "the folder 'no/such/folder' does not exist"),
        (["--model", "wsfvit_p0_224", "--in-chans", "4", "--input-size", "3", "64", "64"], "wsfvit_p0_224"),
    ],
)
def test_mistakes_end_in_one_line(monkeypatch, error_of, argv, expected):
    monkeypatch.setattr(sys, "argv", ["x", *argv])
    assert expected in error_of(get_flops.main)
