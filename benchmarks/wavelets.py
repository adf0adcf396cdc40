"""Time Haar transforms (one level, 2-D) against other libraries, other formulations and the limit, a copy.

    python -m benchmarks.wavelets --op all --shapes 4x3x224x224 64x64x56x56 --threads 2 --repeats 20
    python -m benchmarks.wavelets --op dwt --shapes 64x64x56x56 --device cuda --dtype bfloat16 --backward \\
        --out results/wavelets_dwt.json

Every candidate is checked against PyWavelets in float64 (without that package: against our plain formulas) before
anything is timed, up to the signs, order and border that it documents; a wrong one ends the program. Each is timed in
the memory layout of its own output, without conversions. The copy moves as many bytes as the transform must read and
write; "of limit" is its time over the candidate's. With --backward, forward and backward are timed together and each
gradient is checked to be the adjoint. WSFVIT_WAVELET_BACKEND chooses our backend, which the table names.

Prints a table per transform and shape, --out writes them as JSON. The first command takes about a minute.
"""

import argparse
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.baseline import FFTHaarSWT2d
from benchmarks.common import DTYPES, build_timing_parser, parse_shape, set_up_device, write_run
from benchmarks.timing import (
    DIRECTIONS,
    Step,
    build_step,
    capture,
    host_seconds,
    relative_error,
    require_small,
    time_candidates,
)
from wsfvit.layers import PublishedHaarSWT2d
from wsfvit.utils.errors import first_line, run_main
from wsfvit.utils.precision import memory_format
from wsfvit.utils.tables import markdown_table
from wsfvit.wavelets import SwtMode, haar_dwt2d, haar_swt2d, reference

COPY = "copy (same bytes)"
FFT = "fft (baseline)"
# Norm of the difference over the norm. Peers keep float32 filters and some compute in half precision.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
PUBLISHED_SIGNS = (1, -1, -1, 1)
PYWAVELETS = "PyWavelets"
# The tests compare our plain formulas with PyWavelets.
ORACLE = PYWAVELETS if importlib.util.find_spec("pywt") else "our plain formulas"


class NotApplicable(Exception):
    """A candidate that cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Candidate:
    """One way to compute the transform.

    `run` maps (B, C, H, W) to the library's own output, and `unpack` maps that to (B, 4, C, h, w) in the order cA, cH,
    cV, cD. `signs` are its signs relative to PyWavelets. `border` is what follows the last row and column.
    """

    run: Callable[[torch.Tensor], Any]
    unpack: Callable[[Any], torch.Tensor]
    border: str = "zero"
    signs: tuple[int, int, int, int] = (1, 1, 1, 1)


def _wsfvit(op: str, x: torch.Tensor) -> Candidate:
    return Candidate(haar_swt2d if op == "swt" else haar_dwt2d, lambda y: y)


def _inductor(op: str, x: torch.Tensor) -> Candidate:
    """Our formulas compiled by inductor into a kernel."""
    if x.device.type != "cuda":
        raise NotApplicable("on a CPU it needs a C++ compiler")
    return replace(_wsfvit(op, x), run=torch.compile(_wsfvit(op, x).run))


def _stem(op: str, x: torch.Tensor) -> Candidate:
    """The stem's transform: our SWT with the published signs and border."""
    if op == "dwt":
        raise NotApplicable("the stem's transform is undecimated")
    border = "periodic" if _wraps(x) else "zero"
    return Candidate(PublishedHaarSWT2d().to(x.device), _unpack_stem, border, PUBLISHED_SIGNS)


def _wraps(x: torch.Tensor) -> bool:
    """The published border: a square image that fills its power-of-two canvas wraps around."""
    H, W = x.shape[-2:]
    return H == W == FFTHaarSWT2d.canvas_size(H, W)


def _unpack_stem(y: torch.Tensor) -> torch.Tensor:
    return torch.stack(y.chunk(4, dim=1), dim=1)


def _fft(op: str, x: torch.Tensor) -> Candidate:
    """The baseline's stem transform; for the DWT, every second coefficient of it."""
    H = x.shape[-2]
    swt: Callable[[torch.Tensor], torch.Tensor] = FFTHaarSWT2d().to(x.device)
    wraps = _wraps(x)
    run, border = swt, "periodic" if wraps else "zero"
    if op == "dwt":
        if wraps and H == 1:
            raise NotApplicable("a 1x1 image wraps around")
        # Blocks that start at even places reach beyond the border in odd sizes only, and those see zeros.
        run, border = lambda x: swt(x)[..., ::2, ::2].contiguous(), "zero"
    return Candidate(run, _unpack_stem, border, PUBLISHED_SIGNS)


def _grouped_conv(op: str, x: torch.Tensor) -> Candidate:
    """A depthwise convolution with the four 2x2 filters, output channel-major."""
    B, C, H, W = x.shape
    filters = [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]
    weight = torch.tensor(filters, device=x.device, dtype=x.dtype).div(2)[:, None].repeat(C, 1, 1, 1)
    pad = (0, 1, 0, 1) if op == "swt" else (0, W % 2, 0, H % 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, pad) if any(pad) else x, weight, stride=1 if op == "swt" else 2, groups=C)

    return Candidate(run, lambda y: y.unflatten(1, (-1, 4)).transpose(1, 2))


def _pytorch_wavelets(op: str, x: torch.Tensor) -> Candidate:
    library = _import("pytorch_wavelets")
    if op == "dwt":
        return Candidate(library.DWTForward(J=1, wave="haar", mode="zero").to(x), _unpack_low_high)
    swt = _import("pytorch_wavelets.dwt.transform2d").SWTForward(J=1, wave="haar", mode="zero").to(x)
    return Candidate(swt, lambda y: y[0].unflatten(1, (-1, 4)).transpose(1, 2))


def _ptwt(op: str, x: torch.Tensor) -> Candidate:
    """It has no 2-D SWT, so that is its 1-D one along the rows, then along the columns."""
    ptwt = _import("ptwt")
    if x.dtype not in (torch.float32, torch.float64):
        raise NotApplicable("float32 and float64 only")
    if op == "dwt":
        return Candidate(
            lambda x: ptwt.wavedec2(x, "haar", mode="zero", level=1), lambda y: torch.stack([y[0], *y[1]], dim=1)
        )

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        low, high = ptwt.swt(x, "haar", level=1, axis=-2)
        cA, cV = ptwt.swt(low, "haar", level=1, axis=-1)
        cH, cD = ptwt.swt(high, "haar", level=1, axis=-1)
        return [cA, cH, cV, cD]

    return Candidate(run, partial(torch.stack, dim=1), border="periodic")


def _torchwavelets(op: str, x: torch.Tensor) -> Candidate:
    torchwavelets = _import("torchwavelets")
    if op == "dwt":
        return Candidate(torchwavelets.DWT2D(wave="haar", J=1, mode="zero").to(x.device), _unpack_low_high)
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise NotApplicable("its SWT takes even sizes only")
    swt = torchwavelets.SWT2D("haar", level=1).to(x.device)
    return Candidate(swt, lambda y: torch.stack([y[0][0], *y[0][1]], dim=1), border="periodic")


def _unpack_low_high(y: Any) -> torch.Tensor:
    low, (high, *_) = y
    return torch.cat([low[:, :, None], high], dim=2).transpose(1, 2)


def _import(module: str) -> Any:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise NotApplicable("not installed")
    return importlib.import_module(module)


CANDIDATES: dict[str, Callable[[str, torch.Tensor], Candidate]] = {
    "wsfvit": _wsfvit,
    "wsfvit, the stem's": _stem,
    "wsfvit, compiled": _inductor,
    FFT: _fft,
    "grouped convolution": _grouped_conv,
    "pytorch_wavelets": _pytorch_wavelets,
    "ptwt": _ptwt,
    "torchwavelets": _torchwavelets,
}


def build_candidates(op: str, x: torch.Tensor) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Candidates that can run on x (B, C, H, W), and the reasons of those that cannot."""
    candidates, left_out = {}, {}
    for name, build in CANDIDATES.items():
        try:
            candidate = build(op, x)
        except NotApplicable as reason:
            left_out[name] = str(reason)
        else:
            candidates[_display_name(name, x.device)] = candidate
    return candidates, left_out


def _display_name(name: str, device: torch.device) -> str:
    if name != "wsfvit":
        return name
    from wsfvit.wavelets import resolve_backend

    return f"wsfvit ({resolve_backend(device)})"


def exact_transform(op: str, x: torch.Tensor, border: str) -> torch.Tensor:
    """`ORACLE` in float64 on the CPU, (B, C, H, W) -> (B, 4, C, h, w)."""
    if ORACLE != PYWAVELETS:
        exact = x.detach().double().cpu()
        mode: SwtMode = "periodic" if border == "periodic" else "zero"
        return reference.haar_dwt2d(exact) if op == "dwt" else reference.haar_swt2d(exact, mode)
    import numpy as np
    import pywt

    H, W = x.shape[-2:]
    image = x.detach().double().cpu().numpy()
    if op == "dwt":
        cA, details = pywt.dwt2(image, "haar", mode="zero")
        return torch.from_numpy(np.stack([cA, *details], axis=1))
    # pywt's SWT is periodic and takes even sizes; a border of its own, then cropped away, makes any other one.
    extra = ((0, 0), (0, 0), (0, 2 - H % 2), (0, 2 - W % 2))
    padded = np.pad(image, extra, mode="wrap" if border == "periodic" else "constant")
    [(cA, details)] = pywt.swt2(padded, "haar", level=1, axes=(-2, -1))
    return torch.from_numpy(np.stack([cA, *details], axis=1)[..., :H, :W].copy())


def check_forward(name: str, candidate: Candidate, op: str, x: torch.Tensor) -> float:
    """Relative error against `ORACLE` on the first and the last image of the batch; too large ends the program."""
    with torch.no_grad():
        got = candidate.unpack(candidate.run(x))
    ends = slice(None, None, max(x.shape[0] - 1, 1))
    want = exact_transform(op, x[ends], candidate.border)
    if got.shape != (x.shape[0], *want.shape[1:]):
        raise SystemExit(f"{op} by {name}: shape {tuple(got.shape)}, {ORACLE} has {tuple(want.shape[1:])} per image")
    signs = torch.tensor(candidate.signs, dtype=torch.float64)[:, None, None, None]
    error = relative_error(got[ends].double().cpu() * signs, want)
    return require_small(f"{op} by {name} differs from {ORACLE}", error, TOLERANCE[x.dtype])


def check_adjoint(name: str, candidate: Candidate, op: str, x: torch.Tensor) -> float:
    """The transform T is linear, so its gradient must satisfy <T x, g> = <x, T' g>; else the program ends."""
    x = x.detach().requires_grad_()
    y = candidate.unpack(candidate.run(x))
    # g = T x plus noise: the products are large, and rounding does not look like a wrong gradient.
    g = y.detach() + torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, g)
    left = (y.detach().double() * g.double()).sum()
    right = (x.detach().double() * grad.double()).sum()
    # Not relative to <T x, g> itself: for a few elements that can come out near 0.
    error = float((left - right).abs() / (y.detach().double().norm() * g.double().norm()))
    return require_small(f"{op} by {name} has a wrong gradient", error, TOLERANCE[x.dtype])


def build_steps(candidates: dict[str, Candidate], op: str, x: torch.Tensor, direction: str) -> dict[str, Step]:
    """What is timed, by name: the candidates, then the copy that bounds them."""
    B, C, H, W = x.shape
    steps = {name: build_step(candidate.run, x, direction) for name, candidate in candidates.items()}
    written = 4 * (H * W if op == "swt" else -(-H // 2) * -(-W // 2))
    # A copy of n elements reads n and writes n; the backward moves the same bytes the other way.
    source = torch.randn(B * C * (H * W + written) // 2, device=x.device).to(x.dtype)
    times = 1 + DIRECTIONS.index(direction)
    return steps | {COPY: lambda: [source.clone() for _ in range(times)]}


def capture_steps(steps: dict[str, Step], device: torch.device) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps as CUDA graphs, and why others could not become one."""
    graphs: dict[str, Step] = {}
    refused = {}
    for name, step in steps.items():
        try:
            graphs[name] = capture(step, device)
        except RuntimeError as err:
            if name == COPY:
                raise
            refused[name] = f"no CUDA graph: {first_line(err)}"
    return graphs, refused


def bench_transform(op: str, shape: tuple[int, ...], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Check and time one transform on one shape, print its table, and return its record."""
    generator = torch.Generator().manual_seed(args.seed)
    x = torch.randn(shape, generator=generator).to(device, DTYPES[args.dtype])
    x = x.contiguous(memory_format=memory_format(args))
    candidates, left_out = build_candidates(op, x)
    errors = {name: {"forward": check_forward(name, candidate, op, x)} for name, candidate in candidates.items()}
    if args.backward:
        for name, candidate in candidates.items():
            errors[name]["adjoint"] = check_adjoint(name, candidate, op, x)
    direction = DIRECTIONS[args.backward]
    steps = build_steps(candidates, op, x, direction)
    host = {name: host_seconds(step, device) for name, step in steps.items()} if args.cuda_graph else {}
    if args.cuda_graph:
        steps, refused = capture_steps(steps, device)
        left_out |= refused
    timings = time_candidates(steps, args, device)
    rows, results = [], []
    for name, timing in timings.items():
        share = timings[COPY].median / timing.median
        border = candidates[name].border if name in candidates else None
        record = {"candidate": name, "relative_error": errors.get(name), "of_limit": share, "border": border}
        results.append(record | asdict(timing) | ({"host_seconds": host[name]} if host else {}))
        speed = f"{timings[FFT].median / timing.median:.2f}" if FFT in timings else ""
        rows.append([name, *timing.cells(), f"{100 * share:.0f} %", speed, border or ""])
    rows += [[name, reason, "", "", "", "", ""] for name, reason in left_out.items()]
    header = ["candidate", "ms", "20 to 80 %", "peak MiB", "of limit", "speed vs fft", "border"]
    print(f"\n{op} {'x'.join(map(str, shape))} {args.dtype}, {direction}\n\n{markdown_table(header, rows)}", flush=True)
    return {"op": op, "shape": shape, "results": results, "left_out": left_out}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("benchmarks.wavelets", __doc__)
    parser.add_argument("--op", choices=("swt", "dwt", "all"), default="all")
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=[(4, 3, 224, 224)], metavar="BxCxHxW")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--channels-last", action="store_true", help="memory format of the input")
    parser.add_argument("--backward", action="store_true", help="time forward + backward")
    parser.add_argument(
        "--cuda-graph",
        action="store_true",
        help="time only the GPU, by replaying CUDA graphs, and record what the host takes to start a call eagerly",
    )
    args = parser.parse_args(argv)
    if args.cuda_graph and not args.device.startswith("cuda"):
        parser.error("--cuda-graph needs --device cuda")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads)
    ops = ("swt", "dwt") if args.op == "all" else (args.op,)
    print(f"checked against {ORACLE}")
    runs = [bench_transform(op, shape, args, device) for op in ops for shape in args.shapes]
    write_run(args, checked_against=ORACLE, runs=runs)


if __name__ == "__main__":
    run_main(main)
