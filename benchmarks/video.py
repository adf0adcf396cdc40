"""Time the video model, whole and part by part, against the published computation with the same weights.

    python -m benchmarks.video --batch-size 2 --threads 1 --repeats 5 --out results/cpu/video.json
    python -m benchmarks.video --device cuda --batch-size 16 --precision bfloat16 --compile --out gpu.json

Both models are at the published setting (10 frames of 64x64 in and out) by default, and must agree in
float32, outputs and gradients, before anything is timed. Candidates take turns. "Where the time goes" runs every part
by itself, on its inputs inside the model.

Prints tables of the median, the 20 % and 80 % quantiles, and the speed relative to the baseline (above 1 is faster);
--out writes them as JSON. The first command takes about two minutes.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baseline_video import BaselineSimVP
from benchmarks.common import DTYPES, build_timing_parser, set_up_device, write_run
from benchmarks.timing import Timing, check_equal, inference_step, time_candidates, training_step
from wsfvit.utils.errors import run_main
from wsfvit.utils.precision import autocast
from wsfvit.utils.tables import markdown_table
from wsfvit.video import SimVP, SimVPConfig
from wsfvit.video.flops import part_names

OURS, BASELINE = "wsfvit", "baseline (published)"
HALF = ("bfloat16", "float16")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("benchmarks.video", __doc__)
    parser.add_argument("--batch-size", type=int, default=2, help="sequences")
    parser.add_argument("--frames", type=int, default=10, help="frames in and out")
    parser.add_argument("--size", type=int, default=64, help="side of a frame, a multiple of 32")
    parser.add_argument("--hid-s", type=int, default=64, help="width of encoder and decoder")
    parser.add_argument("--hid-t", type=int, default=512, help="width of the translator")
    parser.add_argument(
        "--precision", choices=("float32", "tf32", *HALF), default="float32", help="half precisions are autocast's"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile both models, and every part by itself")
    parser.add_argument(
        "--processor-time", action="store_true", help="on a CPU: measure CPU time, which other programs change little"
    )
    args = parser.parse_args(argv)
    if args.size % 32:
        parser.error(f"--size must be a multiple of 32, which the baseline needs, got {args.size}")
    if args.frames * args.hid_s == args.hid_t:
        parser.error("--frames times --hid-s must not be --hid-t: the baseline always has its 1x1 convolutions")
    return args


def build_models(args: argparse.Namespace, device: torch.device) -> dict[str, nn.Module]:
    """Our model and the baseline, with the same weights."""
    config = SimVPConfig(frames_in=args.frames, frames_out=args.frames, hid_s=args.hid_s, hid_t=args.hid_t)
    ours = SimVP(config)
    baseline = BaselineSimVP(args.frames, hid_s=args.hid_s, hid_t=args.hid_t)
    baseline.load_state_dict(ours.state_dict(), strict=True)
    return {OURS: ours.to(device), BASELINE: baseline.to(device)}


def record_inputs(model: nn.Module, parts: Sequence[str], frames: Tensor) -> dict[str, tuple[Any, ...]]:
    """What every part receives in a training step on `frames`; those that would carry a gradient are marked so."""
    recorded: dict[str, tuple[Any, ...]] = {}

    def record(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        recorded[name] = tuple(x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in args)

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(record, name)) for name in parts]
    model.train()(frames)
    for handle in handles:
        handle.remove()
    return recorded


def time_part(
    name: str,
    models: dict[str, nn.Module],
    inputs: dict[str, Any],
    args: argparse.Namespace,
    device: torch.device,
    precision: Callable[[], Any],
) -> dict[str, dict[str, Timing]]:
    """Timings of a part ("" is the whole model) by mode ("inference", "training") and candidate."""
    clock = time.process_time if args.processor_time else time.perf_counter
    parts = {candidate: model.get_submodule(name) for candidate, model in models.items()}
    timings = {}
    for mode in ("inference", "training"):
        steps = {}
        for candidate, part in parts.items():
            part.train(mode == "training")
            given = inputs[candidate][name]
            call = partial(torch.compile(part) if args.compile else part, *given)
            training = partial(training_step, part, call, precision, inputs=given)
            steps[candidate] = training if mode == "training" else partial(inference_step, call, precision)
        timings[mode] = time_candidates(steps, args, device, clock)
    return timings


def time_models(models: dict[str, nn.Module], args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """One record per part, mode and candidate, the whole model first, with tables.

    `speed` is the baseline's time over the candidate's.
    """
    precision = partial(autocast, device, DTYPES[args.precision] if args.precision in HALF else None)
    generator = torch.Generator().manual_seed(args.seed)
    frames = torch.rand(args.batch_size, args.frames, 1, args.size, args.size, generator=generator).to(device)
    parts = ["", *part_names(SimVPConfig())]
    with precision():
        inputs = {name: record_inputs(model, parts, frames) for name, model in models.items()}
    records, whole = [], {}
    wholes: list[list[str]] = []
    shares: dict[str, list[list[str]]] = {"inference": [], "training": []}
    for part in parts:
        for mode, timings in time_part(part, models, inputs, args, device, precision).items():
            speeds = {name: timings[BASELINE].median / timing.median for name, timing in timings.items()}
            for name, timing in timings.items():
                record = {"part": part or "total", "mode": mode, "model": name, "speed": speeds[name]}
                records.append(record | asdict(timing))
            if not part:
                whole[mode] = timings[OURS].median
                for name, timing in timings.items():
                    rate = f"{args.batch_size / timing.median:.2f}"
                    wholes.append([f"{mode}, {name}", *timing.cells(), rate, f"{speeds[name]:.2f}"])
                continue
            share = f"{100 * timings[OURS].median / whole[mode]:.1f}"
            shares[mode].append([f"{mode}, {part}", *timings[OURS].cells()[:2], share, f"{speeds[OURS]:.2f}"])
        print(f"timed {part or 'the whole model'}", flush=True)
    header = ["whole model", "ms", "20 to 80 %", "peak MiB", "sequences/s", "speed vs baseline"]
    print(f"\n{markdown_table(header, wholes)}\n\nwhere the time goes\n")
    header = ["part by itself", "ms", "20 to 80 %", "% of the model", "speed vs baseline"]
    print(markdown_table(header, [*shares["inference"], *shares["training"]]))
    return records


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads)
    torch.manual_seed(args.seed)
    models = build_models(args, device)
    x = torch.rand(1, args.frames, 1, args.size, args.size, generator=torch.Generator().manual_seed(args.seed))
    error = check_equal(OURS, models[OURS], models[BASELINE], x.to(device))
    print(f"{OURS} agrees with its baseline, relative error {error}", flush=True)
    set_up_device(args.device, args.threads, tf32=args.precision == "tf32")
    records = time_models(models, args, device)
    write_run(args, relative_error=error, results=records)


if __name__ == "__main__":
    run_main(main)
