"""Run one row of a study in a process of its own: train, then count MACs and measure speed and memory.

    python -m experiments.study_row FOLDER BATCH_SIZE REPEATS     # as experiments.study calls it

Reads FOLDER/config.yaml (arguments of train.py), continues the run in FOLDER if there is one, and writes
FOLDER/measured.json. Ends like train.py: exit code 75 after a request to stop, 2 after a mistake in the settings.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import build_parser, environment
from benchmarks.timing import classification_loss, cpu_or_wall_clock, inference_step, measure_together, training_step
from wsfvit.analysis.flop_counter import count_complexity
from wsfvit.cli.train import parse_train_args
from wsfvit.factory.data import resolve_data
from wsfvit.factory.model import build_model
from wsfvit.train.classify import run_training
from wsfvit.train.loop import peak_memory
from wsfvit.train.signals import STOPPED_EXIT_CODE
from wsfvit.utils.distributed import resolve_device
from wsfvit.utils.errors import run_main
from wsfvit.utils.files import write_text_atomic
from wsfvit.utils.precision import amp_dtype, autocast, memory_format


def measure_model(args: argparse.Namespace, batch_size: int, repeats: int) -> dict[str, Any]:
    """Parameters, MACs per image, and images per second of bare forward and training steps without loading."""
    device = resolve_device(args.device)
    with torch.device("meta"):
        model: Any = build_model(args)
        shape = resolve_data(args, model)["input_size"]
        complexity = count_complexity(model, torch.zeros(1, *shape))
    # Speed does not depend on the values, and the trained weights are not needed.
    layout = memory_format(args)
    model = build_model(args)
    model.to(device=device, memory_format=layout)
    images = torch.randn(batch_size, *shape).to(device, memory_format=layout)
    labels = torch.randint(model.num_classes, (batch_size,), device=device)

    precision = partial(autocast, device, amp_dtype(args))

    def infer() -> None:
        model.eval()
        inference_step(partial(model, images), precision)

    def train() -> None:
        model.train()
        training_step(model, partial(classification_loss, model, images, labels), precision)

    # Rows are timed at different times: CPU time shows the load of other programs least.
    clock, clock_name = cpu_or_wall_clock(device)
    timings = measure_together({"inference": infer, "training": train}, 1, repeats, device, clock)
    speeds = {f"{mode}_images_per_s": batch_size / timing.median for mode, timing in timings.items()}
    timed = {"timed_batch_size": batch_size, "timed_by": clock_name}
    return {"params": complexity.params, "macs": complexity.macs, **timed, **speeds}


def describe_memory(device: torch.device) -> dict[str, Any]:
    """Highest memory use so far in bytes, and of what."""
    peak = peak_memory(device)
    if peak is None:
        return {"peak_memory": None, "peak_memory_of": "not measured"}
    of = "GPU" if device.type == "cuda" else "process (with Python and its libraries)"
    return {"peak_memory": round(peak * 2**30), "peak_memory_of": of}


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser("experiments.study_row", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("batch_size", type=int, metavar="BATCH_SIZE", help="images of a timed step")
    parser.add_argument("repeats", type=int, metavar="REPEATS", help="timed rounds")
    row = parser.parse_args(argv)
    folder: Path = row.folder
    args = parse_train_args(["-c", str(folder / "config.yaml")])
    result = run_training(args)
    if not result.finished:
        sys.exit(STOPPED_EXIT_CODE)
    rows, best = result.rows, result.best
    assert best is not None  # every epoch is validated
    # Taken before the timing, whose batch may be another, and kept: where that is interrupted, no training follows.
    memory = folder / "memory.json"
    if not memory.is_file():
        write_text_atomic(memory, json.dumps(describe_memory(resolve_device(args.device))) + "\n")
    measured = json.loads(memory.read_text()) | {
        "model": args.model,
        "epochs": len(rows),
        # The last epoch's: the best on the test set would be chosen by the test set.
        "top1": rows[-1]["top1"],
        "best_top1": best["top1"],
        "best_epoch": best["epoch"],
        "train_loss": rows[-1]["train_loss"],
        "val_loss": rows[-1]["val_loss"],
        "training_seconds": sum(row["seconds"] for row in rows),
    }
    measured |= measure_model(args, row.batch_size, row.repeats) | {"environment": environment()}
    write_text_atomic(folder / "measured.json", json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
