"""python -m wsfvit export: every family as ONNX, beside torch.export and AOTInductor, and the command around it."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import wsfvit.__main__ as command
import wsfvit.engine.export as export
from wsfvit.engine.args.export import add_export_args
from wsfvit.errors import UserError
from wsfvit.wavelets import haar_dwt2d

TINY_WSF = {"embed_dims": (8, 8), "depths": (1, 1), "inter_heads": (2, 2), "head_dim": 4, "stage_strides": (2, 2)}
TINY_WSF |= {"stem_width": 8, "head_hidden_size": 8}
TINY_VIT = {"depth": 1, "embed_dim": 16}
# One model per family, and the images (H, W) that it is exported for; odd where the model has no nominal size.
FAMILIES = {
    "wsfvit_p0_224": (TINY_WSF | {"img_size": (32, 64)}, (32, 64)),
    "wsfvit_dwt_p0_224": (TINY_WSF | {"img_size": (32, 64)}, (32, 64)),
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


def run_onnx(content: bytes, images: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.name == "images" and given.shape[1:] == list(images.shape[1:])
    return session.run(["logits"], {"images": images.numpy()})[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_becomes_onnx_with_a_dynamic_batch(name: str) -> None:
    kwargs, size = FAMILIES[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs).eval()
    content = export.export_model(model, torch.randn(3, 3, *size), "onnx", dynamic_batch=True)
    for batch in (1, 3):
        images = torch.randn(batch, 3, *size)
        expected = model(images).numpy()
        np.testing.assert_allclose(run_onnx(content, images), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
