"""Time the three peers' parts that were rewritten against their published computation.

    python -m benchmarks.peers wavemix --shapes 16x36x32x32 8x48x56x56 --levels 1 2 3 4 --threads 1
    python -m benchmarks.peers wacnn --wavelet db2 --threads 1 --out results/cpu/wacnn_db2.json
    python -m benchmarks.peers afno --shapes 64x384x8x8 8x384x16x16 --threads 1 --out results/cpu/mwa.json

wavemix  The pyramid of subbands of levels 1 to L, computed once per block. The published block transforms its map to
         depth i again for each level i and keeps that level only: with pytorch_wavelets, as published, and with our
         Haar operator, so that only the repetition differs (at most 2.7 times the work for three levels).
wacnn    Wavelet attention in closed form. The published block multiplies with dense band matrices and computes a fourth
         subband that it does not use; here its matrices are made once, not in each forward.
afno     AFNO's block product as one real product per layer. The published layer runs eight einsums on real and
         imaginary parts into buffers filled with zeros. Timed by itself, and in the whole mixer with its FFTs.

Outputs and gradients of all candidates are checked to be equal before forward and forward + backward are timed. Takes
one to a few minutes per peer on one CPU core; prints a table per case, --out writes them as JSON.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import build_timing_parser, parse_shape, parse_wavelet, set_up_device, write_run
from benchmarks.timing import DIRECTIONS, build_step, relative_error, require_small, tensors_of, time_candidates
from wsfvit.layers import AFNO2d, WaveletAttention
from wsfvit.models.wavemix_blocks import WaveletPyramid
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.tables import markdown_table
from wsfvit.wavelets import haar_dwt2d
from wsfvit.wavelets.filterbank import filter_bank

TOLERANCES = {"wavemix": 1e-6, "wacnn": 1e-5, "afno": 1e-5}
# WaveMix 144/7 on CIFAR-10 and 192/16 at 224 pixels; the ResNets' and VGG's width at 224; ViT-S at 32 and 64 pixels.
SHAPES = {
    "wavemix": [(16, 36, 32, 32), (8, 48, 56, 56)],
    "wacnn": [(8, 16, 224, 224), (4, 64, 224, 224)],
    "afno": [(64, 384, 8, 8), (8, 384, 16, 16)],
}


@dataclass(frozen=True)
class Candidate:
    """One computation of a part.

    Attributes:
        run: The timed function: one tensor in, one or several out.
        x: Its input.
        weights: Parameters whose gradients are computed too.
        unpack: Brings an output into the layout that the candidates share.
        unpack_input: Likewise the gradient of the input.
    """

    run: Callable[[Tensor], Any]
    x: Tensor
    weights: tuple[Tensor, ...] = ()
    unpack: Callable[[Tensor], Tensor] = lambda y: y
    unpack_input: Callable[[Tensor], Tensor] = lambda x: x


# What identifies a case in the record, and its candidates by name, ours first.
Case = tuple[dict[str, Any], dict[str, Candidate]]


def wavemix_cases(x: Tensor, args: argparse.Namespace) -> Iterator[Case]:
    """x (B, C, H, W) to the subbands of levels 1 to L."""
    from pytorch_wavelets import DWTForward

    for level in args.levels:
        transforms = [DWTForward(J=i, mode="zero", wave="db1").to(x.device) for i in range(1, level + 1)]
        yield (
            {"level": level},
            {
                "wsfvit, once": Candidate(WaveletPyramid(level), x),
                "wsfvit, per level": Candidate(partial(repeat_levels, level), x),
                "pytorch_wavelets, per level (published)": Candidate(
                    partial(published_levels, transforms), x, unpack=unpack_levels
                ),
            },
        )


def repeat_levels(level: int, x: Tensor) -> list[Tensor]:
    """Haar subbands (B, 4, C, h, w) of each level, each of them from ``x`` on."""
    maps = []
    for i in range(level):
        low = x
        for _ in range(i):
            low = haar_dwt2d(low)[:, 0]
        maps.append(haar_dwt2d(low))
    return maps


def published_levels(transforms: Sequence[Callable[[Tensor], Any]], x: Tensor) -> list[Tensor]:
    """(B, 4 * C, h, w) of each level, as the published MLPs take them: cA of all channels, then cH, cV, cD of each."""
    maps = []
    for transform in transforms:
        low, highs = transform(x)
        maps.append(torch.cat((low, highs[-1].flatten(1, 2)), 1))
    return maps


def unpack_levels(subbands: Tensor) -> Tensor:
    """The published (B, 4 * C, h, w) to (B, 4, C, h, w)."""
    C = subbands.shape[1] // 4
    details = subbands[:, C:].unflatten(1, (C, 3)).transpose(1, 2)
    return torch.cat((subbands[:, None, :C], details), 1)


def wacnn_cases(x: Tensor, args: argparse.Namespace) -> Iterator[Case]:
    """x (B, C, H, W) to the attended map and LL, both (B, C, H / 2, W / 2)."""
    bands = BandMatrixAttention(args.wavelet, *x.shape[2:]).to(x.device)
    ours = WaveletAttention(args.wavelet).to(x.device)
    yield {}, {"wsfvit": Candidate(ours, x), "band matrices (published)": Candidate(bands, x)}


class BandMatrixAttention(nn.Module):
    """The published form: (B, C, H, W) -> out and LL, each (B, C, H / 2, W / 2), for one even H and W."""

    low_h: Tensor
    high_h: Tensor
    low_w: Tensor
    high_w: Tensor

    def __init__(self, wavelet: str, height: int, width: int) -> None:
        super().__init__()
        if height % 2 or width % 2:
            raise UserError(f"band matrices need even sizes, not {height}x{width}: change --shapes")
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
    """(size / 2, size): row i holds the F taps from column 2i - (F/2 - 1) on, cut off at the borders."""
    rows = torch.arange(size // 2)[:, None]
    columns = 2 * rows - (len(taps) // 2 - 1) + torch.arange(len(taps))
    matrix = torch.zeros(size // 2, size)
    inside = (columns >= 0) & (columns < size)
    matrix[rows.expand_as(columns)[inside], columns[inside]] = torch.tensor(taps).expand_as(columns)[inside]
    return matrix


def afno_cases(x: Tensor, args: argparse.Namespace) -> Iterator[Case]:
    """x (B, C, H, W): the block product on its spectrum, and the mixer on its tokens."""
    fused = AFNO2d(x.shape[1], args.num_blocks).to(x.device)
    einsums = EinsumAFNO2d(x.shape[1], args.num_blocks).to(x.device)
    einsums.load_state_dict(fused.state_dict())
    names = "wsfvit, fused", "eight einsums (published)"
    weights = tuple(fused.parameters()), tuple(einsums.parameters())
    tokens = x.permute(0, 2, 3, 1).contiguous()
    # Each product gets the spectrum as its own FFT leaves it in memory.
    spectra = torch.fft.rfft2(x, norm="ortho"), torch.fft.rfft2(tokens, dim=(1, 2), norm="ortho")
    to_nhwc = partial(torch.permute, dims=(0, 2, 3, 1))
    product = [
        Candidate(fused.mix_channels, spectra[0], weights[0], to_nhwc, to_nhwc),
        Candidate(einsums.mix_channels, spectra[1], weights[1]),
    ]
    mixer = [Candidate(fused, tokens, weights[0]), Candidate(einsums, tokens, weights[1])]
    for part, candidates in (("block product", product), ("mixer", mixer)):
        yield {"part": part}, dict(zip(names, candidates, strict=True))


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


CASES = {"wavemix": wavemix_cases, "wacnn": wacnn_cases, "afno": afno_cases}


def check_candidates(candidates: dict[str, Candidate], tolerance: float) -> dict[str, float]:
    """Largest relative error of each candidate's outputs and gradients; a wrong one ends the program."""
    reference: list[Tensor] = []
    errors = {}
    for name, each in candidates.items():
        leaf = each.x.detach().requires_grad_()
        outputs = [each.unpack(y) for y in tensors_of(each.run(leaf))]
        generator = torch.Generator().manual_seed(1)  # equal for all candidates, different for each output
        weights = [torch.randn(y.shape, dtype=y.dtype, generator=generator).to(y.device) for y in outputs]
        grad, *others = torch.autograd.grad(outputs, [leaf, *each.weights], weights)
        found = [*outputs, each.unpack_input(grad), *others]
        reference = reference or found
        error = max(relative_error(a, b) for a, b in zip(found, reference, strict=True))
        errors[name] = require_small(f"{name} differs", error, tolerance)
    return errors


def bench_shape(shape: tuple[int, ...], args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Check and time one shape (B, C, H, W), print its tables, and return a record per case and direction."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(args.seed)).to(device)
    records = []
    for case, candidates in CASES[args.peer](x, args):
        errors = check_candidates(candidates, TOLERANCES[args.peer])
        for direction in DIRECTIONS:
            steps = {name: build_step(c.run, c.x, direction, c.weights) for name, c in candidates.items()}
            timings = time_candidates(steps, args, device)
            ours = next(iter(timings.values())).median
            shares = {name: timing.median / ours for name, timing in timings.items()}
            title = ", ".join([args.peer, "x".join(map(str, shape)), *(f"{k} {v}" for k, v in case.items()), direction])
            rows = [[name, *timing.cells()[:2], f"{shares[name]:.2f}"] for name, timing in timings.items()]
            print(f"\n{markdown_table([title, 'ms', '20 to 80 %', 'times ours'], rows)}", flush=True)
            results = [
                {"candidate": name, "relative_error": errors[name], "times_ours": shares[name]} | asdict(timing)
                for name, timing in timings.items()
            ]
            records.append({"shape": shape, **case, "direction": direction, "results": results})
    return records


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("benchmarks.peers", __doc__)
    parser.add_argument("peer", choices=CASES)
    defaults = "; ".join(f"{peer} {' '.join('x'.join(map(str, s)) for s in shapes)}" for peer, shapes in SHAPES.items())
    parser.add_argument(
        "--shapes", nargs="+", type=parse_shape, metavar="BxCxHxW", help=f"maps of features (default: {defaults})"
    )
    levels = {"nargs": "+", "type": int, "choices": (1, 2, 3, 4), "default": [1, 2, 3]}
    parser.add_argument("--levels", **levels, help="of wavemix (default: 1 2 3)")  # type: ignore[arg-type]
    parser.add_argument("--wavelet", type=parse_wavelet, default="haar", help="of wacnn: a discrete PyWavelets wavelet")
    parser.add_argument("--num-blocks", type=int, default=4, help="of afno: blocks of the channels")
    args = parser.parse_args(argv)
    args.shapes = args.shapes or SHAPES[args.peer]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads)
    torch.manual_seed(args.seed)
    write_run(args, runs=[record for shape in args.shapes for record in bench_shape(shape, args, device)])


if __name__ == "__main__":
    run_main(main)
