"""Time whole detectors, training step and inference, against torchvision's own Mask R-CNN in one run.

    python -m benchmarks.detection --device cuda --precision bfloat16 --channels-last --out gpu.json
    python -m benchmarks.detection --detectors mask_rcnn:wsfvit_p0_224 torchvision --size 240 320 \\
        --batch-size 1 --threads 1 --warmup 1 --repeats 3 --out results/cpu/detection.json

KIND:BACKBONE is one of ours, of kind mask_rcnn or cascade_mask_rcnn; torchvision is its maskrcnn_resnet50_fpn_v2. All
start from random weights, train all of them, batch norms included, and meet the same normalised pictures of shapes.
torchvision's transform is told to keep their size and values (min_size, max_size, mean 0, standard deviation 1), and
its numbers of proposals, RoIs and detections are those of our Mask R-CNN, --detector-kwargs included.

Training is forward, losses, backward and AdamW. Inference ends with masks pasted into the pictures; untrained
detectors would find nothing, so the first category's score is raised until every proposal is a candidate, as in a
crowded picture. Peak memory (CUDA) is one detector's: weights, AdamW's state in training, and a step's own. Candidates
take turns; speed is relative to torchvision (above 1 is faster). On a CPU processor time is counted, of all threads
together, elsewhere wall time.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    Timing,
    build_timing_parser,
    format_timing,
    markdown_table,
    measure_together,
    set_up_device,
    write_run,
)
from benchmarks.detectors import PEER, Candidate, build_candidates
from wsfvit.cli.common import KeyValues
from wsfvit.detection.model.config import KINDS
from wsfvit.detection.shapes import CATEGORIES
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.precision import autocast

DEFAULT_DETECTORS = ("mask_rcnn:wsfvit_t_224", "cascade_mask_rcnn:wsfvit_t_224", PEER)
# Far above what new classifiers, and a few steps of training, give any category or the background.
RAISED_LOGIT = 20.0


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("detection", __doc__)
    parser.add_argument(
        "--detectors",
        nargs="+",
        default=list(DEFAULT_DETECTORS),
        metavar="NAME",
        help=f"KIND:BACKBONE or {PEER} (default: {' '.join(DEFAULT_DETECTORS)})",
    )
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"), help="default: 480 640")
    parser.add_argument("--batch-size", type=int, default=2, help="pictures")
    parser.add_argument("--num-classes", type=int, default=80, help="categories")
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16"),
        default="float32",
        help="bfloat16 is autocast's",
    )
    parser.add_argument("--channels-last", action="store_true", help="memory format of weights and pictures")
    kwargs: dict[str, Any] = {"nargs": "*", "default": {}, "action": KeyValues, "metavar": "K=V"}
    parser.add_argument("--model-kwargs", **kwargs, help="of our backbones, such as frozen_stats=True, as published")
    parser.add_argument("--detector-kwargs", **kwargs, help="of all detectors, such as roi_samples=128")
    args = parser.parse_args(argv)
    for name in args.detectors:
        if name != PEER and not name.startswith(tuple(f"{kind}:" for kind in KINDS)):
            parser.error(f"--detectors: {name!r} is not {PEER}, nor KIND:BACKBONE, KIND one of {', '.join(KINDS)}")
    if min(args.size) < 32 or args.num_classes < len(CATEGORIES):
        parser.error(f"--size is at least 32 pixels, and --num-classes at least {len(CATEGORIES)}, that of the shapes")
    if min(args.batch_size, args.repeats) < 1:
        parser.error("--batch-size and --repeats are at least 1")
    return args


def training_step(
    candidate: Candidate, optimizer: torch.optim.Optimizer, context: Callable[[], AbstractContextManager[Any]]
) -> Tensor:
    """Forward, losses, backward and an update; returns the loss."""
    with context():
        loss = torch.stack(list(candidate.losses().values())).sum()
    torch.autograd.backward(loss)
    optimizer.step()
    # Freed at once: each candidate then meets the same memory.
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def inference_step(candidate: Candidate, context: Callable[[], AbstractContextManager[Any]]) -> list[Tensor]:
    """Detections with their masks in the pictures."""
    with torch.no_grad(), context():
        return candidate.detect()


def time_detectors(candidates: dict[str, Candidate], args: argparse.Namespace, device: torch.device) -> list[Any]:
    """Trains, then detects: one record per mode and detector.

    Raises:
        UserError: a loss stopped being finite; the cost of such steps says nothing about training.
    """
    context = partial(autocast, device, torch.bfloat16 if args.precision == "bfloat16" else None)
    optimizers = {name: torch.optim.AdamW(each.model.parameters(), lr=1e-4) for name, each in candidates.items()}
    steps = {}
    for name, each in candidates.items():
        each.model.train()
        steps[name] = partial(training_step, each, optimizers[name], context)
    records = _time("training", candidates, steps, args, device)
    for record in records:
        name = record["detector"]
        record["loss"] = float(steps[name]())
        record["held_memory"] += sum(x.nbytes for state in optimizers[name].state.values() for x in state.values())
        if not math.isfinite(record["loss"]):
            raise UserError(f"{name}: its loss became {record['loss']}; try another --precision or --seed")
    finders = {}
    for name, each in candidates.items():
        each.model.eval()
        for bias in each.first_category:
            bias.data += RAISED_LOGIT
        finders[name] = partial(inference_step, each, context)
    found = _time("inference", candidates, finders, args, device)
    for record in found:
        masks = finders[record["detector"]]()
        record["detections_per_picture"] = sum(map(len, masks)) / len(masks)
    return records + found


def _time(
    mode: str, candidates: dict[str, Candidate], steps: Any, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    print(f"timing {mode}", flush=True)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    timings = measure_together(steps, args.warmup, args.repeats, device, clock)
    return [
        {
            "mode": mode,
            "detector": name,
            "params": sum(p.numel() for p in candidates[name].model.parameters()),
            "images_per_second": args.batch_size / timing.median,
            "speed": timings[PEER].median / timing.median if PEER in timings else None,
            "held_memory": sum(x.nbytes for x in candidates[name].model.state_dict().values()),
            **asdict(timing),
        }
        for name, timing in timings.items()
    ]


def print_tables(records: list[dict[str, Any]]) -> None:
    """One table for training, one for inference."""
    header = ["detector", "params (M)", "ms", "20 to 80 %", "peak MiB", "images/s", f"speed vs {PEER}"]
    for mode in ("training", "inference"):
        rows = []
        for record in (record for record in records if record["mode"] == mode):
            timing = Timing(**{field.name: record[field.name] for field in fields(Timing)})
            if timing.peak_memory is not None:
                timing = replace(timing, peak_memory=timing.peak_memory + record["held_memory"])
            speed = "" if record["speed"] is None else f"{record['speed']:.2f}"
            cells = f"{record['params'] / 1e6:.1f}", *format_timing(timing), f"{record['images_per_second']:.3g}", speed
            rows.append([record["detector"], *cells])
        print(f"\n{mode}\n\n{markdown_table(header, rows)}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads, tf32=args.precision == "tf32")
    # The heads' inputs change in number at every step, and cuDNN would search anew for each number.
    torch.backends.cudnn.benchmark = False
    load = os.getloadavg()
    candidates = build_candidates(args, device)
    records = time_detectors(candidates, args, device)
    print_tables(records)
    clock = "processor time" if device.type == "cpu" else "wall time"
    write_run(args, clock=clock, load_average=[load, os.getloadavg()], results=records)


if __name__ == "__main__":
    run_main(main)
