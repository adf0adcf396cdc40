"""Time WaveMix's wavelet pyramid, computed once per block, against computing it anew for each of its levels.

    python -m benchmarks.wavemix --shapes 16x36x32x32 8x48x56x56 --levels 1 2 3 4 --threads 1
    python -m benchmarks.wavemix --threads 1 --out results/cpu/wavemix.json

The published block transforms its map to depth i for each level i and keeps that level only. It is rebuilt here in two
ways: with pytorch_wavelets, whose operator the published code uses, and with our own Haar operator, which leaves the
repetition alone (at most 2.7 times the work for three levels). All give the subbands of every level, in a layout of
their own; they are checked to be equal, gradients as well, before forward and forward + backward are timed.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    build_timing_parser,
    format_timing,
    forward_backward_step,
    forward_step,
    markdown_table,
    measure_together,
    parse_shape,
    set_up_device,
    write_run,
)
from wsfvit.models.wavemix_blocks import WaveletPyramid
from wsfvit.utils.errors import run_main
from wsfvit.wavelets import haar_dwt2d

ONCE = "wsfvit, once"
AGAIN = "wsfvit, per level"
PUBLISHED = "pytorch_wavelets, per level (published)"
TOLERANCE = 1e-6

Pyramid = Callable[[Tensor], list[Tensor]]


def build_candidates(level: int, device: torch.device) -> dict[str, Pyramid]:
    """What maps (B, C, H, W) to the subbands of levels 1 to `level`, by name; see `unpack` for the layouts."""
    from pytorch_wavelets import DWTForward

    transforms = [DWTForward(J=i, mode="zero", wave="db1").to(device) for i in range(1, level + 1)]

    def published(x: Tensor) -> list[Tensor]:
        maps = []
        for transform in transforms:
            low, highs = transform(x)
            # Channel-major details behind the approximation, what the published MLPs take.
            maps.append(torch.cat((low, highs[-1].flatten(1, 2)), 1))
        return maps

    def again(x: Tensor) -> list[Tensor]:
        maps = []
        for i in range(level):
            low = x
            for _ in range(i):
                low = haar_dwt2d(low)[:, 0]
            maps.append(haar_dwt2d(low))
        return maps

    return {ONCE: WaveletPyramid(level), AGAIN: again, PUBLISHED: published}


def unpack(subbands: Tensor) -> Tensor:
    """To (B, 4, C, h, w): the published (B, 4 * C, h, w) has cA of all channels, then cH, cV, cD of each."""
    if subbands.ndim == 5:
        return subbands
    C = subbands.shape[1] // 4
    details = subbands[:, C:].unflatten(1, (C, 3)).transpose(1, 2)
    return torch.cat((subbands[:, None, :C], details), 1)


def check_equal(candidates: dict[str, Pyramid], x: Tensor) -> dict[str, float]:
    """Largest relative error of every candidate's subbands and input gradient; a wrong one ends the program."""
    reference: list[Tensor] = []
    errors = {}
    for name, pyramid in candidates.items():
        leaf = x.detach().requires_grad_()
        maps = [unpack(y) for y in pyramid(leaf)]
        # Distinct weights per level and subband: an exchange of two would show in the gradient.
        weights = [torch.linspace(-1, 2, y.numel(), device=y.device).reshape(y.shape) for y in maps]
        loss = torch.stack([(w * y).sum() for w, y in zip(weights, maps, strict=True)]).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
        results = [*(y.detach() for y in maps), grad]
        reference = reference or results
        errors[name] = max(float((a - b).norm() / b.norm()) for a, b in zip(results, reference, strict=True))
        if not errors[name] < TOLERANCE:
            raise SystemExit(f"{name} differs by {errors[name]:.2e}; nothing was timed")
    return errors


def build_steps(candidates: dict[str, Pyramid], x: Tensor, backward: bool) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    if not backward:
        return {name: partial(forward_step, pyramid, x) for name, pyramid in candidates.items()}
    leaf = x.detach().requires_grad_()
    return {
        name: partial(forward_backward_step, pyramid, [leaf], [torch.randn_like(y) for y in pyramid(leaf)])
        for name, pyramid in candidates.items()
    }


def bench_pyramid(
    shape: tuple[int, ...], level: int, backward: bool, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Check and time one shape and number of levels, print its table, and return its record."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(args.seed)).to(device)
    candidates = build_candidates(level, device)
    errors = check_equal(candidates, x)
    timings = measure_together(build_steps(candidates, x, backward), args.warmup, args.repeats, device)
    slower = {name: timing.median / timings[ONCE].median for name, timing in timings.items()}
    rows = [[name, *format_timing(timing)[:2], f"{slower[name]:.2f}"] for name, timing in timings.items()]
    print(f"\n{'x'.join(map(str, shape))}, level {level}, {'forward + backward' if backward else 'forward'}\n")
    print(markdown_table(["pyramid", "ms", "20 to 80 %", "times ours"], rows), flush=True)
    results = [
        {"candidate": name, "relative_error": errors[name], "times_ours": slower[name]} | asdict(timing)
        for name, timing in timings.items()
    ]
    return {"shape": shape, "level": level, "backward": backward, "results": results}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("wavemix", __doc__)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=parse_shape,
        default=[(16, 36, 32, 32), (8, 48, 56, 56)],
        metavar="BxCxHxW",
        help="reduced maps (default: those of 144/7 on CIFAR-10, and of 192/16 at 224 pixels)",
    )
    parser.add_argument("--levels", nargs="+", type=int, choices=(1, 2, 3, 4), default=[1, 2, 3], help="default: 1 2 3")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads)
    runs = [
        bench_pyramid(shape, level, backward, args, device)
        for shape in args.shapes
        for level in args.levels
        for backward in (False, True)
    ]
    write_run(args, runs=runs)


if __name__ == "__main__":
    run_main(main)
