"""Count the bytes that training holds for the backward pass: no timing, no GPU, the same on every machine.

    python -m benchmarks.memory configs/cifar10/study.yaml --img-size 32 64 128 --out results/cpu/memory.json

For each system of a study: bytes of activations per image that autograd keeps between forward and backward, in float32
and without activation checkpointing, and those of weights, gradients and AdamW's two moments. The peak of a training is
at least their sum at its batch size; temporary buffers of operators and the allocator's waste come on top.

Prints a table in MiB, --out writes bytes as JSON. Takes a minute or two per image size.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from benchmarks.common import add_out, build_parser, write_run
from experiments.study_plan import Row, load_study, row_settings
from wsfvit.cli.train import parse_train_args
from wsfvit.factory.data import resolve_data
from wsfvit.factory.model import build_model
from wsfvit.utils.errors import run_main
from wsfvit.utils.tables import markdown_table


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of ``model(images)``; each storage once, without weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, Tensor] = {}  # kept alive, so that no storage is used twice

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in own)


def measure_system(settings: dict[str, Any]) -> dict[str, Any]:
    """Bytes of one system, from its arguments of train.py; those of activations under the image's size, HxW."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(settings))
        args = parse_train_args(["-c", str(config)])
    model: Any = build_model(args)
    model.train()
    shape = resolve_data(args, model)["input_size"]
    # The difference of two batches leaves out what does not grow with them.
    small, large = (saved_bytes(model, torch.randn(batch, *shape)) for batch in (2, 4))
    params = sum(p.numel() for p in model.parameters())
    activations = {f"{shape[1]}x{shape[2]}": (large - small) // 2}
    return {"params": params, "weights_and_optimizer": 16 * params, "activations_per_image": activations}


def _measure_sizes(settings: dict[str, Any], sizes: list[int] | None) -> dict[str, Any]:
    found = [measure_system(settings | ({"img_size": size} if size else {})) for size in (sizes or (None,))]
    activations = {size: count for each in found for size, count in each["activations_per_image"].items()}
    return found[0] | {"activations_per_image": activations}


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("benchmarks.memory", __doc__)
    parser.add_argument("study", metavar="FILE.yaml", help="names the systems, see experiments.study")
    parser.add_argument("--img-size", type=int, nargs="+", metavar="N", help="of images (default: each system's own)")
    add_out(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    study = load_study(args.study)
    results = {name: _measure_sizes(row_settings(study, Row(name, 0)), args.img_size) for name in study.systems}
    sizes = list(dict.fromkeys(size for found in results.values() for size in found["activations_per_image"]))
    rows = []
    for name, found in results.items():
        activations = [found["activations_per_image"].get(size) for size in sizes]
        rows.append([name, *map(_mebibytes, [*activations, found["weights_and_optimizer"]])])
    print("MiB of activations per image of a size, and of weights, gradients and moments\n")
    print(markdown_table(["system", *sizes, "weights and AdamW"], rows))
    write_run(args, results=results)


if __name__ == "__main__":
    run_main(main)
