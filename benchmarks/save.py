"""Time what saving a checkpoint costs the training: the stall of the loop, and the writing in the background.

    python -m benchmarks.save --model wsfvit_b_224 --out results/cpu/save.json
    python -m benchmarks.save --model wsfvit_b_224 --device cuda --out results/save.json

The checkpoint holds a model, AdamW's state and an EMA: four numbers per parameter. While the thread writes, the loop
goes on with small matrix products; how much longer they take than before is the cost of the thread. The first save also
allocates the memory that the later ones reuse. The last line saves without a thread.

Prints a line per save, --out writes them as JSON. Takes about a minute, and four times the checkpoint on the disk.
"""

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.common import add_device_options, add_out, build_parser, set_up_device, write_run
from wsfvit.checkpoint.store import CheckpointStore
from wsfvit.factory.model import check_model_name
from wsfvit.utils.errors import run_main
from wsfvit.utils.tables import markdown_table


def build_content(name: str, device: torch.device) -> dict[str, Any]:
    """The tensors of a checkpoint of the model ``name`` after its first update."""
    check_model_name(name)
    model = timm.create_model(name).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    ema = copy.deepcopy(model.state_dict())
    return {"state_dict": model.state_dict(), "state_dict_ema": ema, "optimizer": optimizer.state_dict()}


def step_seconds(operand: torch.Tensor) -> float:
    """Seconds for one product."""
    started = time.perf_counter()
    (operand @ operand).sum().item()
    return time.perf_counter() - started


def time_save(store: CheckpointStore, content: dict[str, Any], epoch: int, operand: torch.Tensor) -> dict[str, Any]:
    """One save: seconds that the loop is blocked, and until the file is complete, and its step times meanwhile."""
    calm = statistics.median(step_seconds(operand) for _ in range(50))
    started = time.perf_counter()
    store.save(content, epoch=epoch, metric=float(epoch))
    stalled = time.perf_counter() - started
    steps = []
    while store.is_writing:
        steps.append(step_seconds(operand))
    store.wait()
    return {
        "background": store.background,
        "stall_seconds": stalled,
        "write_seconds": time.perf_counter() - started - (stalled if store.background else 0),
        "step_seconds_before": calm,
        "step_seconds_while_writing": statistics.median(steps) if steps else None,
        "longest_step_seconds": max(steps, default=None),
    }


def measure_saves(content: dict[str, Any], folder: Path, repeats: int, operand: torch.Tensor) -> dict[str, Any]:
    """Saves ``repeats`` times with a thread and once without, then reads the newest checkpoint back."""
    store = CheckpointStore(folder, keep=1)
    saves = [time_save(store, content, epoch, operand) for epoch in range(repeats)]
    store.background = False
    saves.append(time_save(store, content, repeats, operand))
    started = time.perf_counter()
    newest = store.load_newest()
    seconds = time.perf_counter() - started
    assert newest is not None and newest[0]["epoch"] == repeats
    return {"bytes": newest[1].stat().st_size, "load_seconds": seconds, "saves": saves}


def main(argv: list[str] | None = None) -> None:
    parser = build_parser("benchmarks.save", __doc__)
    parser.add_argument("--model", default="wsfvit_b_224", metavar="NAME", help="timm name")
    add_device_options(parser)
    parser.add_argument("--repeats", type=int, default=4, help="saves with a thread")
    parser.add_argument("--folder", metavar="DIR", help="where to write (default: temporary)")
    add_out(parser)
    args = parser.parse_args(argv)
    device = set_up_device(args.device, args.threads)
    content = build_content(args.model, device)
    parameters = sum(value.numel() for value in content["state_dict"].values())
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        results = measure_saves(content, Path(folder), args.repeats, torch.randn(400, 400, device=device))
    rows = []
    for index, save in enumerate(results["saves"]):
        steps = [save[key] for key in ("step_seconds_before", "step_seconds_while_writing", "longest_step_seconds")]
        name = f"{index}" if save["background"] else f"{index}, no thread"
        seconds = f"{save['stall_seconds']:.2f}", f"{save['write_seconds']:.2f}"
        rows.append([name, *seconds, *("" if value is None else f"{value * 1e3:.2f}" for value in steps)])
    header = ["save", "stall s", "write s", "step before ms", "while writing ms", "longest ms"]
    print(markdown_table(header, rows))
    print(
        f"{parameters / 1e6:.1f} M numbers in the model, {results['bytes'] / 1e9:.2f} GB per file, "
        f"read and checked in {results['load_seconds']:.1f} s"
    )
    write_run(args, numbers=parameters, results=results)


if __name__ == "__main__":
    run_main(main)
