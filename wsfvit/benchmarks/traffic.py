"""Count, without a GPU, the kernels that torch.compile makes of a model for one, and the bytes they read and write.

    python -m wsfvit.benchmarks.traffic --model wsfvit_t_224 --parts
    python -m wsfvit.benchmarks.traffic --train --memory-budget 0.5 --out output/traffic.json

The compiler plans each model for the card as it would there (see `pretend_gpu`), and its plan is counted; nothing runs,
and nothing is timed. The bytes are those of the best case: a kernel reads and writes each tensor once, and nothing
stays in the cache between two kernels. The least time is what moving them takes at the bandwidth that the card's vendor
states, without arithmetic and launches: a bound and not a measurement. Multiply-accumulates are those of libraries'
kernels. With --machine-code each generated kernel, fused from the operators between, is compiled for the card, and
its least time is that of issuing its instructions where this takes longer than the bytes (minutes for a model).

Inference: evaluation mode, weights and images in --dtype. Training (--train): forward and backward from the
gradient of the logits to those of the weights, in training mode, float32 weights under autocast to --dtype; saved
is what the forward pass writes for the backward alone. The loss and the optimizer are not counted. All channels-last.

`baseline:NAME` is the published computation of NAME, `fused:NAME` its copy for inference by `wsfvit.models.fuse`, which
--fuse adds for every model that has one. Not counted: what libraries do inside, such as transposing for a convolution.
Padding of matrix products to aligned sizes, which the compiler decides by timing it on the card, is off.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from wsfvit.benchmarks.baseline import BASELINE_CFGS, create_baseline
from wsfvit.benchmarks.common import DTYPES, add_compile_options, build_parser, markdown_table, write_run
from wsfvit.benchmarks.kernel_code import CARDS, Card
from wsfvit.benchmarks.models import FUSED_PREFIX, PREFIX, create_timm_model
from wsfvit.benchmarks.traffic_count import Kernel, part_of, plan_inference, plan_training
from wsfvit.engine.args.common import positive_int
from wsfvit.engine.build import check_model_name
from wsfvit.engine.compiling import compile_options
from wsfvit.errors import UserError, run_main
from wsfvit.models.fuse import can_fuse, fuse_for_inference

SUMS = ("kernels", "GB at best", "ms at least", "share")
MODELS = (
    "wsfvit_t_224",
    "wsfvit_dwt_t_224",
    PREFIX + "wsfvit_t_224",
    "maxvit_tiny_tf_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
)
HEADER = (
    *("model", "pass", "kernels", "generated", "GB at best", "in libraries", "in generated"),
    *("GMACs in libraries", "ms at least", "GB saved"),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser("traffic", __doc__)
    names = "timm names, baseline:NAME, fused:NAME"
    parser.add_argument("--model", nargs="+", default=list(MODELS), metavar="NAME", help=names)
    parser.add_argument("--batch-size", type=positive_int, default=256, metavar="N", help="images")
    parser.add_argument("--img-size", type=positive_int, default=224, metavar="N", help="their side")
    parser.add_argument("--dtype", choices=[name for name in DTYPES if name != "float64"], default="bfloat16")
    add_compile_options(parser)
    parser.add_argument("--train", action="store_true", help="count a training step, not inference")
    parser.add_argument("--fuse", action="store_true", help="also count the copies for inference")
    parser.add_argument("--machine-code", action="store_true", help="also count instructions of generated kernels")
    parser.add_argument("--parts", action="store_true", help="also count by part of the model")
    parser.add_argument("--card", choices=list(CARDS), default="H200", help="to compile for")
    parser.add_argument("--out", metavar="FILE", help="write the run as JSON")
    args = parser.parse_args(argv)
    if args.train and (args.fuse or any(name.startswith(FUSED_PREFIX) for name in args.model)):
        parser.error("fused copies are for inference, leave out --train")
    return args


def create_model(name: str, img_size: int) -> nn.Module:
    """A model by a name of this program, on the CPU in float32.

    Raises:
        UserError: There is no such model.
    """
    own = name.removeprefix(PREFIX).removeprefix(FUSED_PREFIX)
    check_model_name(own)
    if name.startswith(PREFIX):
        if own not in BASELINE_CFGS:
            raise UserError(f"no published computation of '{own}'; there is one of {', '.join(BASELINE_CFGS)}")
        return create_baseline(own, img_size)
    model = create_timm_model(own, img_size)
    return fuse_for_inference(model) if name.startswith(FUSED_PREFIX) else model


def count_model(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per pass: inference, or forward and backward of a training step."""
    card, dtype = CARDS[args.card], DTYPES[args.dtype]
    own = torch.float32 if args.train else dtype  # of weights and images
    model: Any = create_model(name, args.img_size).to(dtype=own, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.empty(args.batch_size, 3, args.img_size, args.img_size, dtype=own, device="meta")
    images = images.to(memory_format=torch.channels_last)
    if args.train:
        plan = plan_training(model, images, card, None if dtype == own else dtype, args.machine_code)
    else:
        plan = plan_inference(model, images, card, args.machine_code)
    for graph, kernels in plan.graphs.items():
        saved = plan.saved if graph == "forward" else None
        record = {"model": name, "pass": graph, **summarise(kernels, card), "saved_bytes": saved}
        yield record | ({"parts": summarise_parts(kernels, card)} if args.parts else {})


def summarise(kernels: list[Kernel], card: Card) -> dict[str, Any]:
    """Sums over the kernels of a pass, also by kind, and the bound that bytes and instructions set."""
    return {
        "kernels": len(kernels),
        "bytes": sum(kernel.bytes for kernel in kernels),
        "macs": sum(kernel.macs for kernel in kernels),
        "instructions": sum(kernel.instructions for kernel in kernels),
        "least_seconds": sum(kernel.least_seconds(card) for kernel in kernels),
        "kinds": _group(kernels, card, lambda kernel: kernel.kind),
    }


def summarise_parts(kernels: list[Kernel], card: Card) -> dict[str, dict[str, float]]:
    """The same by part of the model; a fused kernel belongs to the part in which it ends."""
    return _group(kernels, card, lambda kernel: part_of(kernel.module))


def _group(kernels: list[Kernel], card: Card, key: Callable[[Kernel], str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for kernel in kernels:
        own = {"kernels": 1, "bytes": kernel.bytes, "macs": kernel.macs, "least_seconds": kernel.least_seconds(card)}
        sums = found.setdefault(key(kernel), dict.fromkeys(own, 0))
        for name, value in own.items():
            sums[name] += value
    return found


def main(argv: list[str] | None = None) -> None:
    from torch._functorch import config as functorch_config
    from torch._inductor import config as inductor_config

    args = parse_args(argv)
    names, options = list(dict.fromkeys(args.model)), compile_options("cuda", args.train, None, args.compile_options)
    budget = 1.0 if args.memory_budget is None else args.memory_budget
    if args.fuse:
        plain = [name for name in names if not name.startswith((PREFIX, FUSED_PREFIX))]
        names += [FUSED_PREFIX + name for name in plain if can_fuse(create_model(name, args.img_size))]
    results: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        print(f"{i + 1}/{len(names)} {name}", file=sys.stderr, flush=True)
        with inductor_config.patch(options), functorch_config.patch(activation_memory_budget=budget):
            results += count_model(name, args)
    card = CARDS[args.card]
    said = f"batch {args.batch_size}, {args.img_size}x{args.img_size}, {args.dtype}, torch.compile for {args.card}"
    print(f"\nCounted, not measured: {said}, {card.bandwidth / 1e12:g} TB/s\n")
    print(markdown_table(HEADER, [_row(record) for record in results]))
    for record in results if args.parts else []:
        print(f"\n{record['model']}, {record['pass']}\n")
        print(markdown_table(["part", *SUMS], _part_rows(record)))
    write_run(args, card=asdict(card), results=results)


def _row(record: dict[str, Any]) -> list[str]:
    generated = record["kinds"].get("generated", {"kernels": 0, "bytes": 0})
    return [
        record["model"],
        record["pass"],
        str(record["kernels"]),
        str(generated["kernels"]),
        f"{record['bytes'] / 1e9:.2f}",
        f"{(record['bytes'] - generated['bytes']) / 1e9:.2f}",
        f"{generated['bytes'] / 1e9:.2f}",
        f"{record['macs'] / 1e9:.1f}",
        f"{1e3 * record['least_seconds']:.2f}",
        "" if record["saved_bytes"] is None else f"{record['saved_bytes'] / 1e9:.2f}",
    ]


def _part_rows(record: dict[str, Any]) -> list[list[str]]:
    return [
        [
            *(part, str(sums["kernels"]), f"{sums['bytes'] / 1e9:.3f}", f"{1e3 * sums['least_seconds']:.3f}"),
            f"{sums['least_seconds'] / record['least_seconds']:.1%}",
        ]
        for part, sums in record["parts"].items()
    ]


if __name__ == "__main__":
    run_main(main)
