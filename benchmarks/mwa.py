"""Time AFNO's block product as one real product per layer against the published eight einsums.

    python -m benchmarks.mwa --shapes 64x384x8x8 8x384x16x16 --threads 1
    python -m benchmarks.mwa --out results/cpu/mwa.json

The published layer multiplies real and imaginary parts by real and imaginary weights one by one and writes the sums
into buffers filled with zeros; it is rebuilt here. Both have the same weights and are checked to be equal, outputs and
all gradients, before anything is timed: the product alone, and the whole mixer with its FFTs.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
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
from wsfvit.layers import AFNO2d
from wsfvit.utils.errors import run_main

FUSED, EINSUMS = "wsfvit, fused", "eight einsums (published)"
TOLERANCE = 1e-5


class EinsumAFNO2d(AFNO2d):
    """The published computation of `AFNO2d`: (B, H, W, C) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, _ = x.shape
        spectrum = self.mix_channels(torch.fft.rfft2(x, dim=(1, 2), norm="ortho"))
        return x + torch.fft.irfft2(spectrum, s=(H, W), dim=(1, 2), norm="ortho")

    def mix_channels(self, spectrum: Tensor) -> Tensor:
        """Complex (B, H, W // 2 + 1, C) -> the same."""
        x = spectrum.unflatten(-1, (self.num_blocks, -1))
        real, imag = self._complex_linear(x.real, x.imag, self.w1, self.b1, F.relu)
        real, imag = self._complex_linear(real, imag, self.w2, self.b2, lambda y: y)
        out = F.softshrink(torch.stack((real, imag), -1), self.sparsity_threshold)
        return torch.view_as_complex(out).flatten(3)

    @staticmethod
    def _complex_linear(
        real: Tensor, imag: Tensor, weight: Tensor, bias: Tensor, act: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        product = partial(torch.einsum, "...ki,kio->...ko")
        out_real, out_imag = torch.zeros(real.shape, device=real.device), torch.zeros(real.shape, device=real.device)
        out_real[:] = act(product(real, weight[0]) - product(imag, weight[1]) + bias[0])
        out_imag[:] = act(product(imag, weight[0]) + product(real, weight[1]) + bias[1])
        return out_real, out_imag


def build_cases(shape: tuple[int, ...], num_blocks: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """For product and mixer, by candidate: function, input, module of its weights, and how its output becomes NHWC."""
    B, C, H, W = shape
    fused = AFNO2d(C, num_blocks).to(device)
    einsums = EinsumAFNO2d(C, num_blocks).to(device)
    einsums.load_state_dict(fused.state_dict())
    x = torch.randn(B, H, W, C, generator=torch.Generator().manual_seed(0)).to(device)
    # Each product gets the spectrum as its own FFT leaves it in memory.
    spectrum = torch.fft.rfft2(x.permute(0, 3, 1, 2), norm="ortho")
    spectrum_nhwc = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
    return {
        "block product": {
            FUSED: (fused.mix_channels, spectrum, fused, lambda y: y.permute(0, 2, 3, 1)),
            EINSUMS: (einsums.mix_channels, spectrum_nhwc, einsums, lambda y: y),
        },
        "mixer": {FUSED: (fused, x, fused, lambda y: y), EINSUMS: (einsums, x, einsums, lambda y: y)},
    }


def check_equal(case: dict[str, Any]) -> float:
    """Largest relative error of output and gradients; a wrong one ends the program."""
    results = []
    for function, x, module, to_nhwc in case.values():
        leaf = x.detach().requires_grad_()
        y = to_nhwc(function(leaf))
        weights = torch.linspace(-1, 2, y.numel(), device=y.device).reshape(y.shape)
        loss = (torch.view_as_real(y) * weights[..., None]).sum() if y.is_complex() else (y * weights).sum()
        grads = torch.autograd.grad(loss, [leaf, *module.parameters()])
        results.append([y.detach(), to_nhwc(grads[0]), *grads[1:]])
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True))
    if not error < TOLERANCE:
        raise SystemExit(f"the two computations differ by {error:.2e}; nothing was timed")
    return error


def bench_shape(shape: tuple[int, ...], args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Check and time one shape, print its table, and return its records."""
    rows, records = [], []
    for part, case in build_cases(shape, args.num_blocks, device).items():
        error = check_equal(case)
        for direction in ("forward", "forward + backward"):
            steps: dict[str, Callable[[], Any]] = {}
            for name, (function, x, module, _) in case.items():
                leaf = x.detach().requires_grad_()
                grad = torch.randn_like(function(leaf))
                step = partial(forward_backward_step, function, [leaf, *module.parameters()], grad)
                steps[name] = partial(forward_step, function, x) if direction == "forward" else step
            timings = measure_together(steps, args.warmup, args.repeats, device)
            gain = timings[EINSUMS].median / timings[FUSED].median
            for name, timing in timings.items():
                rows.append([f"{part}, {direction}, {name}", *format_timing(timing)[:2]])
                records.append({"part": part, "direction": direction, "candidate": name} | asdict(timing))
            rows[-2].append(f"{gain:.2f}")
            rows[-1].append("1.00")
            records[-2]["speed_over_einsums"] = gain
            records[-2]["relative_error"] = error
    print(f"\n{'x'.join(map(str, shape))}, {args.num_blocks} blocks\n")
    print(markdown_table(["AFNO", "ms", "20 to 80 %", "speed"], rows), flush=True)
    return records


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("mwa", __doc__)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=parse_shape,
        default=[(64, 384, 8, 8), (8, 384, 16, 16)],
        metavar="BxCxHxW",
        help="maps of tokens (default: ViT-S at 32 and at 64 pixels, 64x384x8x8 8x384x16x16)",
    )
    parser.add_argument("--num-blocks", type=int, default=4, help="blocks of the channels")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads)
    torch.manual_seed(args.seed)
    runs = [{"shape": shape, "results": bench_shape(shape, args, device)} for shape in args.shapes]
    write_run(args, runs=runs)


if __name__ == "__main__":
    run_main(main)
