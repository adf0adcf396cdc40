"""Split a model's time by part, and relate it to the speed of a matrix product and of a memory copy.

    python -m benchmarks.parts --model wsfvit_t_224 --batch-size 4 --threads 1 --repeats 10
    python -m benchmarks.parts --model wsfvit_t_224 --batch-size 256 --device cuda --dtype bfloat16 --amp \\
        --channels-last --train --out parts.json

The parts of a WSF-ViT model are its roles: the stem's transform and its convolutions, MBConv, the shortcuts that
downsample, the three kinds of attention, the Haar transforms of wsfvit_dwt_*, and the head; "MBConv: squeeze-excite"
and the like lie inside such a part. Another model is split by the names of its children. What lies inside a part and is
one itself is not counted in the outer one, so the parts and the rest (what no part covers: in training the loss, too)
add up to the whole. Marks are hooks, and hooked modules are called: squeeze-excite is timed on the map, where unmarked
MBConvs may put its gates on weights. --train adds a training step, its backward pass split the same way.

Two limits are measured in the same run: the speed of a large matrix product in --dtype, and that of copying memory.
The share of the first is 2 FLOPs per MAC of get_flops.py (norms included, about 1 % of a WSF-ViT model's; twice as many
in a backward pass) per second over that speed. The share of the second is what the wavelet transforms would read and
write at least, each value once, per second over that bandwidth.

On CUDA the times are the device's, between events in its stream. On a CPU they are CPU time of the process, so that
other load on the machine shows little, and with several threads the time of all of them. Images per second, and the
share of the whole model, are those of passes without marks.

Prints a table per pass, --out writes them as JSON. The first command takes about half a minute.
"""

import argparse
import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import (
    DTYPES,
    add_precision_options,
    build_timing_parser,
    check_precision,
    set_up_device,
    write_run,
)
from benchmarks.models import create_timm_model, random_batch
from benchmarks.part_timer import BACKWARD, REST, PartTimer, average_middle
from benchmarks.timing import Clock, classification_loss, cpu_or_wall_clock, inference_step, time_candidates
from wsfvit.analysis.flop_counter import count_complexity
from wsfvit.layers import Downsample, InterSubbandAttention, MBConv, PartitionAttention, PublishedHaarSWT2d, WaveletStem
from wsfvit.models.wsfvit import WSFBlock, WSFViT
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.precision import memory_format
from wsfvit.utils.tables import markdown_table

STEM_TRANSFORM, BLOCK_TRANSFORMS = "stem: transform", "DWT and IDWT"
# Side of the square matrices, and bytes to copy. On the CPU, four times the side or the bytes is no faster.
LIMIT_SIZES = {"cuda": (8192, 2**30), "cpu": (1024, 2**27)}
INNER_PARTS: dict[type[nn.Module], dict[str, str]] = {
    MBConv: {"conv2_kxk": "depthwise 3x3", "se": "squeeze-excite"},
    PartitionAttention: {"mlp": "MLP"},
    InterSubbandAttention: {"cpe.0": "depthwise 3x3", "cpe.1": "depthwise 3x3", "mlp": "MLP"},
}
SHARES = {
    "share_of_pass": "% of the pass",
    "share_of_matrix_speed": "% of matrix speed",
    "share_of_bandwidth": "% of bandwidth",
}
# A forward pass, and what runs the backward pass from its result.
Pass = tuple[Callable[[], Any], Callable[[Any], Any] | None]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("benchmarks.parts", __doc__)
    parser.add_argument("--model", default="wsfvit_t_224", metavar="NAME", help="timm name")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images")
    parser.add_argument("--img-size", type=int, default=224, metavar="N", help="their side")
    add_precision_options(parser)
    parser.add_argument("--train", action="store_true", help="also split a training step, forward and backward")
    args = parser.parse_args(argv)
    check_precision(parser, args)
    if min(args.batch_size, args.img_size, args.repeats) < 1:
        parser.error("--batch-size, --img-size and --repeats must be at least 1")
    return args


def find_parts(model: nn.Module) -> dict[str, str]:
    """Labels by module name, in the order of the model: roles in a WSF-ViT, names of children in any other model."""
    parts: dict[str, str] = {}
    if isinstance(model, WSFViT):
        for name, module in model.named_modules():
            if role := _role(module):
                inner = INNER_PARTS.get(type(module), {})
                parts |= {name: role} | {f"{name}.{path}": f"{role}: {label}" for path, label in inner.items()}
        return parts | {"head": "head"}
    for name, child in model.named_children():
        # Of a container the entries: some models call those one by one.
        entries = [f"{name}.{entry}" for entry, _ in child.named_children()]
        is_container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        parts |= {part: part for part in (entries if is_container else [name])}
    return parts


def _role(module: nn.Module) -> str | None:
    match module:
        case WaveletStem():
            return "stem: convolutions"
        case PublishedHaarSWT2d():
            return STEM_TRANSFORM
        case WSFBlock(explicit_dwt=True):
            return BLOCK_TRANSFORMS  # all that such a block does besides calling its parts
        case MBConv():
            return "MBConv"
        case Downsample():
            return "downsampling shortcuts"
        case PartitionAttention(partition="window"):
            return "local attention"
        case PartitionAttention(partition="grid"):
            return "global attention"
        case InterSubbandAttention():
            return "inter-subband attention"
    return None


def count_macs(model: nn.Module, parts: dict[str, str], img_size: int) -> dict[str, int]:
    """Multiply-accumulates of one image by label, `REST` included, without those of parts inside.

    Raises:
        UserError: the model runs operators that the counter does not know, or cannot take the size.
    """
    dtype = next(model.parameters()).dtype
    x = torch.empty(1, 3, img_size, img_size, device="meta", dtype=dtype)
    try:
        found = count_complexity(copy.deepcopy(model).to("meta"), x)
    except (AssertionError, RuntimeError, ValueError) as err:
        raise UserError(f"the model cannot be run on images of {img_size} pixels: {err}") from err
    macs = {module.name: module.cost.macs for module in found.modules}
    own = dict.fromkeys(parts.values(), 0) | {REST: found.macs}
    for name, label in parts.items():
        own[label] += macs[name]
        around = max((other for other in parts if name.startswith(f"{other}.")), key=len, default=None)
        own[REST if around is None else parts[around]] -= macs[name]
    return own


def count_transform_bytes(model: nn.Module, forward: Callable[[], Any]) -> Counter[str]:
    """Bytes by label that the wavelet transforms of a pass read and write at least, each value once.

    The adjoint of a transform, which its backward is, moves as many.
    """
    moved: Counter[str] = Counter()

    def count_input(label: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        moved[label] += args[0].nbytes

    def count_output(label: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        moved[label] += output.nbytes

    before: list[tuple[str, nn.Module]] = []
    after: list[tuple[str, nn.Module]] = []
    for module in model.modules():
        if isinstance(module, PublishedHaarSWT2d):
            before.append((STEM_TRANSFORM, module))
            after.append((STEM_TRANSFORM, module))
        elif isinstance(module, WSFBlock) and module.explicit_dwt:
            # The DWT stands between the convolution and the first attention, the IDWT behind the last one.
            before.append((BLOCK_TRANSFORMS, module.attn_local))
            after += [(BLOCK_TRANSFORMS, each) for each in (module.conv, module.attn_global, module)]
    handles = [module.register_forward_pre_hook(partial(count_input, label)) for label, module in before]
    handles += [module.register_forward_hook(partial(count_output, label)) for label, module in after]
    forward()
    for handle in handles:
        handle.remove()
    return moved


def measure_limits(args: argparse.Namespace, device: torch.device, clock: Clock) -> dict[str, Any]:
    """Speed of a matrix product in ``--dtype`` (FLOP/s) and of a copy (bytes/s, read and written)."""
    side, size = LIMIT_SIZES[device.type]
    a, b = torch.randn(2, side, side, device=device).to(DTYPES[args.dtype])
    source = torch.ones(size, device=device, dtype=torch.uint8)
    target, product = torch.empty_like(source), torch.empty_like(a)
    steps = {"product": partial(torch.mm, a, b, out=product), "copy": partial(target.copy_, source)}
    timings = time_candidates(steps, args, device, clock)
    return {
        "matrix_side": side,
        "matrix_flops_per_second": 2 * side**3 / timings["product"].median,
        "copied_bytes": size,
        "copy_bytes_per_second": 2 * size / timings["copy"].median,
    }


def build_passes(args: argparse.Namespace, model: nn.Module, device: torch.device) -> dict[str, Pass]:
    """The passes to split by mode, "inference" and with --train "training"; brings the model to device and dtype."""
    x, target, precision = random_batch(args, device)
    model.to(device=device, dtype=x.dtype, memory_format=memory_format(args))  # type: ignore[call-overload]

    def compute_loss() -> Tensor:
        model.zero_grad(set_to_none=True)
        with precision():
            return classification_loss(model, x, target)

    infer = partial(inference_step, partial(model, x), precision)
    passes: dict[str, Pass] = {"inference": (infer, None)}
    return passes | ({"training": (compute_loss, torch.autograd.backward)} if args.train else {})


def time_passes(
    args: argparse.Namespace, timer: PartTimer, each: Pass, clock: Clock
) -> tuple[float, dict[str, dict[str, float]]]:
    """Median seconds of a pass without marks, and its parts' as of `PartTimer`; passes of both kinds take turns."""
    forward, backward = each
    marked = []

    def run() -> None:
        result = forward()
        if backward is not None:
            backward(result)

    steps = {"plain": run, "marked": lambda: marked.append(timer.time_pass(forward, backward))}
    timings = time_candidates(steps, args, timer.device, clock)
    return timings["plain"].median, average_middle(marked[-args.repeats :])  # those before were to warm up


def describe_pass(
    args: argparse.Namespace,
    mode: str,
    seconds: float,
    phases: dict[str, dict[str, float]],
    macs: dict[str, int],
    moved: Counter[str],
    limits: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a whole pass, ``seconds`` long without marks, and one per phase and label, "total" among them.

    Shares are None where there is nothing to count.
    """
    speed, bandwidth = limits["matrix_flops_per_second"], limits["copy_bytes_per_second"]
    records = []
    for phase, parts in phases.items():
        total = sum(parts.values())
        for label, spent in (parts | {"total": total}).items():
            # A backward pass has the products of a forward pass twice: for the inputs' gradients and the weights'.
            count = macs.get(label, sum(macs.values()))
            flops = 2 * args.batch_size * count * (2 if phase == BACKWARD else 1)
            records.append(
                {
                    **{"mode": mode, "phase": phase, "part": label, "seconds": spent, "share_of_pass": spent / total},
                    **{"flops": flops, "transform_bytes": moved[label]},
                    "share_of_matrix_speed": flops / spent / speed if flops and spent else None,
                    "share_of_bandwidth": moved[label] / spent / bandwidth if moved[label] and spent else None,
                }
            )
    flops_per_image = 2 * sum(macs.values()) * (3 if BACKWARD in phases else 1)
    achieved = flops_per_image * args.batch_size / seconds
    whole = {
        **{"mode": mode, "seconds": seconds, "images_per_second": args.batch_size / seconds},
        "seconds_with_marks": sum(sum(phase.values()) for phase in phases.values()),
        "flops_per_image": flops_per_image,
        "flops_per_second": achieved,
        "share_of_matrix_speed": achieved / speed,
    }
    return whole, records


def print_tables(whole: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """A table per phase, and a line about the whole pass."""

    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.1f}"

    mode = whole["mode"]
    for phase in dict.fromkeys(record["phase"] for record in records):
        rows = [
            [record["part"], f"{1e3 * record['seconds']:.4g}", *(percent(record[key]) for key in SHARES)]
            for record in records
            if record["phase"] == phase
        ]
        print(f"\n{mode}, {phase} pass\n\n{markdown_table(['part', 'ms', *SHARES.values()], rows)}")
    print(
        f"\n{mode}: {whole['images_per_second']:.4g} images/s, {whole['flops_per_second'] / 1e12:.4g} TFLOP/s, "
        f"{percent(whole['share_of_matrix_speed'])} % of the matrix product's; "
        f"{1e3 * whole['seconds']:.4g} ms, with marks {1e3 * whole['seconds_with_marks']:.4g} ms",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads, args.tf32)
    if device.type not in LIMIT_SIZES:
        raise UserError(f"--device {args.device}: only {' and '.join(LIMIT_SIZES)} are supported")
    clock, kind = cpu_or_wall_clock(device)
    torch.manual_seed(args.seed)
    model = create_timm_model(args.model, args.img_size)
    passes = build_passes(args, model.eval(), device)
    parts = find_parts(model)
    macs = count_macs(model, parts, args.img_size)
    moved = count_transform_bytes(model, passes["inference"][0])
    limits = measure_limits(args, device, clock)
    print(
        f"matrix product {limits['matrix_flops_per_second'] / 1e12:.4g} TFLOP/s ({args.dtype}, side "
        f"{limits['matrix_side']}), copy {limits['copy_bytes_per_second'] / 1e9:.4g} GB/s",
        flush=True,
    )
    wholes, records = [], []
    for mode, each in passes.items():
        model.train(mode == "training")
        seconds, phases = time_passes(args, PartTimer(model, parts, device), each, clock)
        whole, found = describe_pass(args, mode, seconds, phases, macs, moved, limits)
        print_tables(whole, found)
        wholes.append(whole)
        records += found
    kind = kind if device.type == "cpu" else f"CUDA events; of whole passes and limits {kind}"
    write_run(args, clock=kind, limits=limits, whole_passes=wholes, results=records)


if __name__ == "__main__":
    run_main(main)
