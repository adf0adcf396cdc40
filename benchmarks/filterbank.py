"""Time the transforms of wavelets other than Haar (one level, 2-D, forward and inverse) against other libraries.

    python -m benchmarks.filterbank --wavelets db2 bior4.4 --shapes 8x64x32x32 4x3x224x224 --threads 1
    python -m benchmarks.filterbank --mode periodization --backward --out results/cpu/filterbank.json

Two of the candidates are ours: `dwt2d`, and `dwt2d` by convolution only. Every candidate is checked against PyWavelets
in float64 before anything is timed. With --backward, forward and backward are timed together.

Prints a table per wavelet and shape, in CPU time on a CPU and wall time elsewhere; --out writes them as JSON. The first
command takes about half a minute.
"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.common import build_timing_parser, parse_shape, parse_wavelet, set_up_device, write_run
from benchmarks.timing import DIRECTIONS, build_step, cpu_or_wall_clock, require_small, time_candidates
from wsfvit.utils.errors import run_main
from wsfvit.utils.tables import markdown_table
from wsfvit.wavelets import BoundaryMode, dwt2d, filterbank, idwt2d

CONVOLUTION = "wsfvit, convolution only"
# Largest difference from PyWavelets, or of the image that comes back, over the largest value.
TOLERANCE = 1e-5
# The modes' names in pytorch_wavelets.
PYTORCH_WAVELETS_MODES = {"zero": "zero", "symmetric": "symmetric", "reflect": "reflect", "periodization": "per"}

# From images (B, C, H, W) to cA and the details, and to the images again.
RoundTrip = Callable[[Tensor], tuple[Tensor, Tensor]]


def build_candidates(wavelet: str, mode: Any, x: Tensor) -> dict[str, RoundTrip]:
    """The candidates that are installed and have the mode."""

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        coeffs = dwt2d(x, wavelet, mode=mode)
        return coeffs[0], idwt2d(coeffs, wavelet, mode)  # type: ignore[return-value]

    def convolution(x: Tensor) -> tuple[Tensor, Tensor]:
        side, filterbank.MAX_MATRIX_SIDE = filterbank.MAX_MATRIX_SIDE, 0
        try:
            return ours(x)
        finally:
            filterbank.MAX_MATRIX_SIDE = side

    candidates: dict[str, RoundTrip] = {"wsfvit": ours, CONVOLUTION: convolution}
    if mode in PYTORCH_WAVELETS_MODES and importlib.util.find_spec("pytorch_wavelets"):
        import pytorch_wavelets

        name = PYTORCH_WAVELETS_MODES[mode]
        forward = pytorch_wavelets.DWTForward(J=1, wave=wavelet, mode=name).to(x)
        inverse = pytorch_wavelets.DWTInverse(wave=wavelet, mode=name).to(x)

        def with_pytorch_wavelets(x: Tensor) -> tuple[Tensor, Tensor]:
            low, high = forward(x)
            return low, inverse((low, high))

        candidates["pytorch_wavelets"] = with_pytorch_wavelets
    if mode != "periodization" and importlib.util.find_spec("ptwt"):
        import ptwt

        def with_ptwt(x: Tensor) -> tuple[Tensor, Tensor]:
            coeffs = ptwt.wavedec2(x, wavelet, mode=mode, level=1)
            return coeffs[0], ptwt.waverec2(coeffs, wavelet)

        candidates["ptwt"] = with_ptwt
    return candidates


def check(name: str, run: RoundTrip, wavelet: str, mode: str, x: Tensor) -> float:
    """Error of the approximation against PyWavelets and of the image that comes back; too large ends the program."""
    import pywt

    with torch.no_grad():
        cA, back = run(x)
    _, _, H, W = x.shape
    exact = torch.from_numpy(pywt.dwt2(x.double().cpu().numpy(), wavelet, mode)[0])
    if cA.shape != exact.shape:
        raise SystemExit(f"{wavelet} by {name}: shape {tuple(cA.shape)}, PyWavelets has {tuple(exact.shape)}")
    pairs = ((cA, exact), (back[..., :H, :W], x))
    error = max(
        float((ours.double().cpu() - truth.double().cpu()).abs().max() / truth.abs().max()) for ours, truth in pairs
    )
    return require_small(f"{wavelet} by {name} differs from PyWavelets", error, TOLERANCE)


def bench(wavelet: str, shape: tuple[int, ...], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Checks and times one wavelet on one shape, prints the table, and returns the record."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(args.seed)).to(device)
    candidates = build_candidates(wavelet, args.mode, x)
    errors = {name: check(name, run, wavelet, args.mode, x) for name, run in candidates.items()}
    direction = DIRECTIONS[args.backward]
    steps = {name: build_step(run, x, direction) for name, run in candidates.items()}
    timings = time_candidates(steps, args, device, cpu_or_wall_clock(device)[0])
    ours = timings["wsfvit"].median
    rows = [[name, *timing.cells(), f"{timing.median / ours:.2f}"] for name, timing in timings.items()]
    table = markdown_table(["candidate", "ms", "20 to 80 %", "peak MiB", "times ours"], rows)
    print(f"\n{wavelet}, {args.mode}, {'x'.join(map(str, shape))}, {direction}\n\n{table}", flush=True)
    results = [{"candidate": name, "relative_error": errors[name]} | asdict(timings[name]) for name in timings]
    return {"wavelet": wavelet, "shape": shape, "results": results}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("benchmarks.filterbank", __doc__)
    parser.add_argument("--wavelets", nargs="+", type=parse_wavelet, default=["db2", "db4", "bior4.4"], metavar="NAME")
    parser.add_argument("--mode", choices=get_args(BoundaryMode), default="symmetric")
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=[(8, 64, 32, 32)], metavar="BxCxHxW")
    parser.add_argument("--backward", action="store_true", help="time forward + backward")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads)
    runs = [bench(wavelet, shape, args, device) for wavelet in args.wavelets for shape in args.shapes]
    write_run(args, clock=cpu_or_wall_clock(device)[1], runs=runs)


if __name__ == "__main__":
    run_main(main)
