"""python -m wsfvit export: every family as ONNX, beside torch.export and AOTInductor, and the command around it."""

import importlib.util
import json
import os
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import wsfvit.__main__ as command
import wsfvit.inference.export as export
from wsfvit.checkpoint.io import load_checkpoint
from wsfvit.cli.tools import export_parser
from wsfvit.utils.errors import UserError
from wsfvit.wavelets import haar_dwt2d

TINY_WSF = {"head_dim": 4, "stem_width": 8, "head_hidden_size": 8, "img_size": (32, 64)}
TINY_VIT = {"depth": 1, "embed_dim": 16}


def per_stage(*strides: int) -> dict[str, Any]:
    """One block of width 8 per stage."""
    stages = len(strides)
    return {
        "embed_dims": (8,) * stages,
        "depths": (1,) * stages,
        "inter_heads": (2,) * stages,
        "stage_strides": strides,
    }


# One model per family, and the images (H, W) that it is exported for; odd where the model has no nominal size. The last
# stage of wsfvit_dwt is one of wsfvit.
FAMILIES = {
    "wsfvit_dwt_p0_224": (TINY_WSF | per_stage(2, 2), (32, 64)),
    "wavemix_192_16_l3": ({"depth": 1, "embed_dim": 16, "level": 2}, (37, 54)),
    "wacnn_resnet18": ({"depths": (1, 1), "widths": (8, 16), "strides": (1, 2), "stem_width": 8}, (37, 54)),
    "mwa_vit_xs_patch4_32": (TINY_VIT | {"groups": 8, "wavelet": "db2"}, (37, 54)),
    "afno_vit_xs_patch4_32": (TINY_VIT | {"num_blocks": 2}, (37, 54)),
    "gfn_vit_xs_patch4_32": (TINY_VIT, (37, 54)),
    "sa_vit_xs_patch4_32": (TINY_VIT, (37, 54)),
}


class Wavelet(nn.Module):
    """The smallest model with an operator of ours: details of a grey image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return haar_dwt2d(images)[:, 1:].flatten(1)


def check_onnx(model: nn.Module, content: bytes, images: torch.Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = model(images).numpy()
    (actual,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_becomes_onnx_with_a_dynamic_batch(name: str) -> None:
    kwargs, size = FAMILIES[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs).eval()
    content = export.export_model(model, torch.randn(3, 3, *size), "onnx", dynamic_batch=True)
    for batch in (1, 5):
        check_onnx(model, content, torch.randn(batch, 3, *size))


def test_fixed_batch() -> None:
    torch.manual_seed(0)
    model = timm.create_model("wsfvit_p0_224", num_classes=5, **TINY_WSF, **per_stage(2)).eval()
    images = torch.randn(2, 3, 32, 64)
    content = export.export_model(model, images, "onnx")
    check_onnx(model, content, images)
    with pytest.raises(Exception, match="invalid dimensions"):
        check_onnx(model, content, images[:1])


@pytest.mark.parametrize("format", ["torch", "aoti"])
def test_other_formats(format: str) -> None:
    if format == "aoti" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("needs a C++ compiler")
    content = export.export_model(Wavelet(), torch.randn(2, 1, 6, 7), format, dynamic_batch=True)
    run = export.load_runner(content, format)
    for batch in (1, 3):
        images = torch.randn(batch, 1, 6, 7)
        torch.testing.assert_close(run(images), Wavelet()(images))


def run_command(*argv: str) -> dict[str, Any]:
    return export.run_export(export_parser().parse_args(argv))


def test_command_exports_a_checkpoint_and_describes_it(trained, tmp_path, capsys) -> None:
    """Model, its arguments and input come from the checkpoint; the EMA is another set of weights."""
    checkpoint, path = str(trained.run_dir / "last.pth.tar"), tmp_path / "digits.onnx"
    run_command("--checkpoint", checkpoint, "--use-ema", "--output", str(path), "--dynamic-batch")
    assert "largest difference from PyTorch: " in capsys.readouterr().out
    described = json.loads((tmp_path / "digits.onnx.json").read_text())
    assert described["input"] == {"name": "images", "shape": [-1, 1, 32, 32], "dtype": "float32"}
    assert described["output"]["shape"] == [-1, 10] and described["trained"]
    assert described["class_names"] == [str(digit) for digit in range(10)]
    assert (described["mean"], described["std"]) == ([0.13], [0.31])
    assert described["max_difference"] < 1e-4
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1).eval()
    load_checkpoint(model, checkpoint, use_ema=True)
    check_onnx(model.requires_grad_(False), path.read_bytes(), torch.randn(2, 1, 32, 32))


def test_fused_copy_is_exported_in_standard_operators(wsf_checkpoint, tmp_path) -> None:
    """The operators that a CPU fuses GELU with stay out of the graph, and the command compares it with the model."""
    import onnx

    path = tmp_path / "wsf.onnx"
    run_command("--checkpoint", wsf_checkpoint, "--output", str(path), "--dynamic-batch", "--fuse")
    operators = [(node.domain, node.op_type) for node in onnx.load(path).graph.node]
    assert {domain for domain, _ in operators} == {""}
    assert operators.count(("", "BatchNormalization")) == 0  # without --fuse the exporter leaves four


def test_command_writes_nothing_that_differs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(export, "load_runner", lambda content, format: lambda images: torch.zeros(len(images), 1000))
    argv = ["--model", "test_resnet", "--img-size", "32", "--format", "torch", "--output", str(tmp_path / "a.pt2")]
    with pytest.raises(UserError, match="the exported model differs from PyTorch by"):
        run_command(*argv)
    assert not list(tmp_path.iterdir())
    assert "max_difference" not in run_command(*argv, "--no-check")
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt2", "a.pt2.json"}
    assert "untrained, random weights" in capsys.readouterr().out


@torch.library.custom_op("test_export::negate", mutates_args=())
def negate(x: torch.Tensor) -> torch.Tensor:
    return -x


@negate.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Foreign(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return negate(images)


class Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum() > 0 else -images


def test_models_that_cannot_be_exported() -> None:
    with pytest.raises(UserError, match="operators that standard PyTorch does not have: test_export.negate"):
        export.export_model(Foreign(), torch.zeros(1, 3, 4, 4), "torch")
    with pytest.raises(UserError, match=r"Branching cannot be exported as torch \(.*data-dependent"):
        export.export_model(Branching(), torch.zeros(1, 3, 4, 4), "torch")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--model test_resnet --output a.pt2", "a file of --format onnx ends in .onnx"),
        ("--model test_resnet --output nowhere/a.onnx", "the folder 'nowhere' does not exist"),
        ("--output a.onnx", "pass --checkpoint FILE, or --model NAME"),
        ("--model test_resnet --output a.onnx --device cuda", "ONNX files do not depend on the device"),
        ("--model test_resnet --output a.onnx", "needs onnxscript: pip install onnxscript"),
        ("--model test_resnet --output a.pt2 --format aoti", "'no-such-compiler' is missing"),
        ("--model test_resnt --output a.pt2 --format torch", "did you mean test_resnet"),
    ],
)
def test_mistakes_are_one_line(argv, expected, tmp_path, monkeypatch, error_of) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    monkeypatch.setattr(sys, "argv", ["wsfvit", "export", *argv.split()])
    assert expected in error_of(command.main)
