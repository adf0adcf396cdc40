"""Time how a training step grows with the batch, the resolution and the number of processes.

    python -m benchmarks.scaling --threads 1 --processes 1 2 --out results/cpu/scaling.json
    python -m benchmarks.scaling --model wsfvit_t_224 --device cuda --amp --channels-last --processes 1 2 4 8 \\
        --batch-sizes 32 64 128 256

A step is a forward and a backward pass on random images. On the CPU the first two tables give CPU time, so that other
load on the machine shows little. A model is built for each resolution, its windows grow with it; --keep-window also
runs the model of the first one on all others, where its windows keep their size and the cost grows with the pixels.

--processes starts itself under torchrun, the batch of each process being the first of --batch-sizes. Steps with and
without the exchange of gradients take turns, and the slowest process counts: the difference is the exchange's share.

Prints a table for each of the three; --out writes them as JSON. The first command takes about ten minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import build_timing_parser, set_up_device, write_results, write_run
from benchmarks.models import create_timm_model
from benchmarks.timing import Step, classification_loss, cpu_or_wall_clock, synchronize, time_candidates, training_step
from wsfvit.utils.distributed import World, distribute, joined_world
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.precision import autocast, memory_format
from wsfvit.utils.tables import markdown_table


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("benchmarks.scaling", __doc__)
    parser.add_argument("--model", default="wsfvit_p0_224", metavar="NAME", help="timm name")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N", help="at the first size"
    )
    parser.add_argument(
        "--img-sizes", type=int, nargs="+", default=[224, 384, 512, 768, 1024], metavar="N", help="at the first batch"
    )
    parser.add_argument("--keep-window", action="store_true", help="also run the first size's model on all others")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[], metavar="N", help="of torchrun, on this machine"
    )
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--channels-last", action="store_true", help="memory format of weights and images")
    return parser.parse_args(argv)


def build_model(args: argparse.Namespace, img_size: int, device: torch.device) -> nn.Module:
    torch.manual_seed(args.seed)
    model: nn.Module = create_timm_model(args.model, img_size).train().to(device)
    return model.to(memory_format=memory_format(args))  # type: ignore[call-overload]


def build_step(args: argparse.Namespace, model: nn.Module, img_size: int, batch: int, device: torch.device) -> Step:
    """A training step on ``batch`` random images, already on the device."""
    x = torch.randn(batch, 3, img_size, img_size).to(device, memory_format=memory_format(args))
    target = torch.randint(10, (batch,), device=device)
    precision = partial(autocast, device, torch.bfloat16 if args.amp else None)
    return partial(training_step, model, partial(classification_loss, model, x, target), precision)


def measure_sizes(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Records over the batch sizes and over the resolutions, with tables."""
    first_size, first_batch = args.img_sizes[0], args.batch_sizes[0]
    model = build_model(args, first_size, device)
    batches = {f"batch {n}": (n, first_size, model) for n in args.batch_sizes}
    sizes = {f"{n} pixels": (first_batch, n, build_model(args, n, device)) for n in args.img_sizes}
    if args.keep_window:
        sizes |= {f"{n} pixels, window kept": (first_batch, n, model) for n in args.img_sizes[1:]}
    records = []
    for settings in (batches, sizes):
        steps = {name: build_step(args, net, size, n, device) for name, (n, size, net) in settings.items()}
        timings, rows = time_candidates(steps, args, device, cpu_or_wall_clock(device)[0]), []
        for name, timing in timings.items():
            batch, size, _ = settings[name]
            each = timing.median / batch
            first = next(iter(timings.values())).median / first_batch
            record = {"setting": name, "batch_size": batch, "img_size": size, "seconds_per_image": each}
            records.append(record | {"cost_of_an_image": each / first} | asdict(timing))
            rows.append([name, *timing.cells(), f"{each * 1e3:.4g}", f"{each / first:.2f}"])
        header = ["setting", "ms per step", "20 to 80 %", "peak MiB", "ms per image", "relative"]
        print(markdown_table(header, rows), flush=True)
    return records


def measure_exchange(args: argparse.Namespace, world: World) -> dict[str, Any]:
    """Seconds of a step with and without the exchange of gradients, by the clock; every process must call it."""
    batch, size = args.batch_sizes[0], args.img_sizes[0]
    model = build_model(args, size, world.device)
    gradient_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    without: Callable[[], AbstractContextManager[Any]] = nullcontext
    if world.size > 1:
        model = distribute(model, world)
        without = model.no_sync
    step = build_step(args, model, size, batch, world.device)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(args.warmup + args.repeats):
        for name, context in (("with", nullcontext), ("without", without)):
            world.barrier()
            start = time.perf_counter()
            with context():
                step()
            synchronize(world.device)
            seconds[name].append(time.perf_counter() - start)
    slowest = {
        name: [max(of_all) for of_all in zip(*world.gather(own[args.warmup :]), strict=True)]
        for name, own in seconds.items()
    }
    full, without_exchange = (statistics.median(slowest[name]) for name in ("with", "without"))
    return {
        "processes": world.size,
        "batch_size_per_process": batch,
        "img_size": size,
        "gradient_bytes": gradient_bytes,
        "seconds": full,
        "seconds_without_exchange": without_exchange,
        "share_of_exchange": 1 - without_exchange / full,
        "images_per_second": batch * world.size / full,
    }


def start_processes(argv: list[str], processes: int) -> dict[str, Any]:
    """Result of ``measure_exchange`` under torchrun with that many processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.json")
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, "-m", *torchrun, "-m", "benchmarks.scaling", *argv, "--out", str(out)]
        # torchrun would set it to 1 and warn.
        variables = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        if subprocess.run(command, env=variables, check=False).returncode:
            raise UserError(f"the run with {processes} processes failed; its messages are above")
        record: dict[str, Any] = json.loads(out.read_text())
        return record


def print_exchange(records: list[dict[str, Any]]) -> None:
    rows = []
    for record in records:
        efficiency = record["images_per_second"] * records[0]["processes"] / record["processes"]
        share, speed = f"{record['share_of_exchange']:.1%}", f"{record['images_per_second']:.4g}"
        times = [f"{record[key] * 1e3:.4g}" for key in ("seconds", "seconds_without_exchange")]
        relative = f"{efficiency / records[0]['images_per_second']:.0%}"
        rows.append([str(record["processes"]), *times, share, speed, relative])
    header = ["processes", "ms per step", "without exchange", "share", "images/s", "of proportional"]
    print(markdown_table(header, rows))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        set_up_device(args.device, args.threads)
        with joined_world(args.device) as world:
            record = measure_exchange(args, world)
            if world.is_main and args.out:
                write_results(args.out, record)
        return
    device = set_up_device(args.device, args.threads)
    sizes = measure_sizes(args, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the processes need it
    exchange = [start_processes(argv, processes) for processes in args.processes]
    if exchange:
        print_exchange(exchange)
    write_run(args, sizes=sizes, processes=exchange)


if __name__ == "__main__":
    run_main(main)
