"""What training holds for the backward pass, counted in bytes: no timing, no GPU, the same on every machine.

    python -m wsfvit.benchmarks.memory configs/cifar10/study.yaml --out results/cpu/memory.json

For each system of a study: bytes of activations per image that autograd keeps between forward and backward, in float32
and without activation checkpointing, and those of weights, gradients and AdamW's two moments. The peak of a training is
at least their sum at its batch size; what operators use for a moment, and what an allocator wastes, come on top.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from wsfvit.benchmarks.common import markdown_table, write_run
from wsfvit.benchmarks.study_plan import Row, load_study, row_settings
from wsfvit.engine.args import parse_train_args
from wsfvit.engine.args.common import Parser
from wsfvit.engine.build import build_model, resolve_data
from wsfvit.errors import run_main


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that the backward pass of ``model(images)`` waits for: every memory once, without weights and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, Tensor] = {}  # kept alive, so that no memory is given out twice

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in own)


def measure_system(settings: dict[str, Any]) -> dict[str, Any]:
    """Bytes of one system, from its arguments of train.py."""
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
    return {"params": params, "activations_per_image": (large - small) // 2, "weights_and_optimizer": 16 * params}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m wsfvit.benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", metavar="FILE.yaml", help="names the systems, see wsfvit.benchmarks.study")
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    study = load_study(args.study)
    results = {name: measure_system(row_settings(study, Row(name, 0))) for name in study.systems}
    rows = [
        [name, *(f"{value / 2**20:.2f}" for value in (found["activations_per_image"], found["weights_and_optimizer"]))]
        for name, found in results.items()
    ]
    print(markdown_table(["system", "activations, MiB per image", "weights and AdamW, MiB"], rows))
    write_run(args, results=results)


if __name__ == "__main__":
    run_main(main)
