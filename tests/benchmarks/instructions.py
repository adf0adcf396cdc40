"""Prints, as JSON, what `generated_code` counts in small plans; a process of its own, without Triton's interpreter."""

import json
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsfvit.benchmarks.kernel_code import CARDS
from wsfvit.benchmarks.traffic_count import plan_inference, plan_training
from wsfvit.layers import WaveletStem
from wsfvit.layers.conv import GELU, TanhGELU
from wsfvit.models.fuse import fuse_for_inference
from wsfvit.wavelets import haar_dwt2d, haar_swt2d, reference, wavelet_backend

CARD = CARDS["H200"]


class Apply(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def count(module: nn.Module, *shape: int) -> float:
    """Instructions of an inference on bfloat16."""
    x = torch.empty(shape, dtype=torch.bfloat16)
    return sum(each.instructions for each in plan_inference(module, x, CARD, machine_code=True).graphs["inference"])


def count_stem(backend: str) -> list[tuple[str, int, float]]:
    """Kind, bytes and instructions of the kernels of the fused stem's first part."""
    model = fuse_for_inference(WaveletStem(3, 16)).dwt_l2.bfloat16()
    x = torch.empty(16, 3, 64, 64, dtype=torch.bfloat16)
    with wavelet_backend(backend):
        plan = plan_inference(model, x, CARD, machine_code=True)
    return [(kernel.kind, kernel.bytes, kernel.instructions) for kernel in plan.graphs["inference"]]


def main() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 1))
    plan = plan_training(model, torch.empty(2, 8, 16, 16), CARD, torch.bfloat16, machine_code=True)
    kernels = [(kernel.kind, kernel.instructions) for each in plan.graphs.values() for kernel in each]
    found = {
        "add": [count(Apply(lambda x: x + 1), size) for size in (2**22, 2**24)],
        "sum": [count(Apply(lambda x: x.sum(0)), size, 2**14) for size in (2**10, 2**12)],
        "tanh": [count(gelu, 2**16) for gelu in (Apply(lambda x: F.gelu(x, approximate="tanh")), TanhGELU())],
        "erf": [count(gelu, 2**16) for gelu in (Apply(F.gelu), GELU())],
        "dwt": [count(Apply(dwt), 64, 16, 28, 28) for dwt in (reference.haar_dwt2d, haar_dwt2d)],
        "swt": [count(Apply(partial(swt, mode="zero")), 16, 3, 64, 64) for swt in (reference.haar_swt2d, haar_swt2d)],
        "stem": {backend: count_stem(backend) for backend in ("reference", "triton")},
        "training": kernels,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
