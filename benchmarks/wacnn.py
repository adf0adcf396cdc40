"""Time WA-CNN's wavelet attention against the same block on band matrices, forward and forward + backward.

    python -m benchmarks.wacnn --shapes 8x16x224x224 4x64x224x224 --threads 1
    python -m benchmarks.wacnn --wavelet db2 --out results/cpu/wacnn_db2.json

The published block multiplies with dense matrices that hold the wavelet's filters as bands, on the left for the height
and on the right for the width, computes all four subbands and uses three. It is rebuilt here without the part that is
no matter of algorithm: its matrices are made once, not in each forward. Outputs (the attended map and LL) and the input
gradient are checked to be equal before anything is timed.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import (
    Timing,
    build_timing_parser,
    format_timing,
    forward_backward_step,
    forward_step,
    markdown_table,
    measure_together,
    parse_shape,
    parse_wavelet,
    set_up_device,
    write_run,
)
from wsfvit.layers import WaveletAttention
from wsfvit.utils.errors import UserError, run_main
from wsfvit.wavelets.filterbank import filter_bank

OURS = "wsfvit"
BAND_MATRICES = "band matrices (published)"
TOLERANCE = 1e-5


class BandMatrixAttention(nn.Module):
    """The published form: (B, C, H, W) -> out and LL, each (B, C, H / 2, W / 2), for one even H and W."""

    low_h: Tensor
    high_h: Tensor
    low_w: Tensor
    high_w: Tensor

    def __init__(self, wavelet: str, height: int, width: int) -> None:
        super().__init__()
        if height % 2 or width % 2:
            raise UserError(f"band matrices take even sizes, not {height}x{width}")
        bank = filter_bank(wavelet)
        for name, taps in (("low", bank.rec_lo), ("high", bank.rec_hi)):
            self.register_buffer(f"{name}_h", band_matrix(taps, height))
            self.register_buffer(f"{name}_w", band_matrix(taps, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.low_h @ x, self.high_h @ x
        LL, LH = low @ self.low_w.T, low @ self.high_w.T
        HL, _ = high @ self.low_w.T, high @ self.high_w.T  # the fourth subband is computed there and not used
        return LL + LL * (LH + HL).softmax(1), LL


def band_matrix(taps: Sequence[float], size: int) -> Tensor:
    """(size / 2, size): row i holds the F taps from column 2i - (F/2 - 1) on; what falls outside is cut off."""
    rows = torch.arange(size // 2)[:, None]
    columns = 2 * rows - (len(taps) // 2 - 1) + torch.arange(len(taps))
    matrix = torch.zeros(size // 2, size)
    inside = (columns >= 0) & (columns < size)
    matrix[rows.expand_as(columns)[inside], columns[inside]] = torch.tensor(taps).expand_as(columns)[inside]
    return matrix


def check_equal(candidates: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Largest relative error of every candidate's outputs and input gradient; a wrong one ends the program."""
    reference: list[Tensor] = []
    errors = {}
    for name, candidate in candidates.items():
        leaf = x.detach().requires_grad_()
        outputs = candidate(leaf)
        (grad,) = torch.autograd.grad(outputs, leaf, _gradients_of(outputs))
        results = [*(y.detach() for y in outputs), grad]
        reference = reference or results
        errors[name] = max(float((a - b).norm() / b.norm()) for a, b in zip(results, reference, strict=True))
        if not errors[name] < TOLERANCE:
            raise SystemExit(f"{name} differs by {errors[name]:.2e}; nothing was timed")
    return errors


def _gradients_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Fixed output gradients, different for each output."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(y.shape, generator=generator).to(y.device) for y in outputs]


def bench_attention(shape: tuple[int, ...], args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Checks and times one shape, prints its tables, and returns a record for forward and one for both passes."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(args.seed)).to(device)
    candidates: dict[str, nn.Module] = {
        OURS: WaveletAttention(args.wavelet).to(device),
        BAND_MATRICES: BandMatrixAttention(args.wavelet, *shape[2:]).to(device),
    }
    errors = check_equal(candidates, x)
    leaf = x.detach().requires_grad_()
    grads = _gradients_of(candidates[OURS](x))
    modes: dict[str, dict[str, Callable[[], Any]]] = {
        "forward": {name: partial(forward_step, module, x) for name, module in candidates.items()},
        "forward + backward": {
            name: partial(forward_backward_step, module, [leaf], grads) for name, module in candidates.items()
        },
    }
    records = []
    for mode, steps in modes.items():
        timings = measure_together(steps, args.warmup, args.repeats, device)
        print(f"\n{args.wavelet}, {'x'.join(map(str, shape))}, {mode}\n\n{_table(timings)}", flush=True)
        results = [
            {"candidate": name, "relative_error": errors[name], "times_ours": timing.median / timings[OURS].median}
            | asdict(timing)
            for name, timing in timings.items()
        ]
        records.append({"shape": shape, "mode": mode, "results": results})
    return records


def _table(timings: dict[str, Timing]) -> str:
    ours = timings[OURS].median
    rows = [[name, *format_timing(timing), f"{timing.median / ours:.2f}"] for name, timing in timings.items()]
    return markdown_table(["attention", "ms", "20 to 80 %", "peak MiB", "times ours"], rows)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("wacnn", __doc__)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=parse_shape,
        default=[(8, 16, 224, 224), (4, 64, 224, 224)],
        metavar="BxCxHxW",
        help="even sizes (default: maps at 224 pixels of the ResNets' and of VGG's width)",
    )
    parser.add_argument("--wavelet", type=parse_wavelet, default="haar", help="discrete PyWavelets wavelet")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads)
    runs = [record for shape in args.shapes for record in bench_attention(shape, args, device)]
    write_run(args, runs=runs)


if __name__ == "__main__":
    run_main(main)
