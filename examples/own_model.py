"""Register a model with a stem of your own in timm; every `wsfvit` command then knows its name.

PYTHONPATH=. python examples/own_model.py train DATA --model wsfvit_db2 --num-classes 3 --experiment db2
PYTHONPATH=. python examples/own_model.py validate DATA --checkpoint output/train/db2/model_best.pth.tar
PYTHONPATH=. python examples/own_model.py export --checkpoint output/train/db2/model_best.pth.tar --output db2.onnx
"""

from typing import Any

import timm
import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

import wsfvit  # noqa: F401  registers the models
from wsfvit.wavelets import DWT2d
from wsfvit_cli import main


class Db2Stem(nn.Module):
    """One level of the db2 transform, then a convolution: (B, C, H, W) -> (B, D, H / 2, W / 2)."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.dwt = DWT2d("db2", mode="periodization")
        self.conv = nn.Conv2d(4 * in_chs, out_chs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        approximation, details = self.dwt(x)
        return self.conv(torch.cat([approximation, *details], dim=1))


default_cfgs = generate_default_cfgs({"wsfvit_db2": {}})


@register_model
def wsfvit_db2(pretrained: bool = False, in_chans: int = 3, **kwargs: Any) -> nn.Module:
    """WSF-ViT P0 whose stem has one db2 transform in the place of the undecimated Haar transform."""
    model = timm.create_model("wsfvit_p0_224", in_chans=in_chans, **kwargs)
    model.stem = Db2Stem(in_chans, model.stem.conv2.out_channels)
    return model


if __name__ == "__main__":
    main(prog="own_model.py")
