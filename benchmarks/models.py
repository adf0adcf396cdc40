"""Time whole models, inference and training, against the published computation with the same weights.

    python -m benchmarks.models --models wsfvit_t_224 convnext_tiny --batch-size 4 --threads 2 --repeats 10
    python -m benchmarks.models --models wsfvit_t_224 maxvit_tiny_tf_224 --device cuda --batch-size 256 \\
        --channels-last --dtype bfloat16 --amp --compile --train --out results/models_t_224.json
    python -m benchmarks.models --models wsfvit_p0_224 peers --img-size 32 --batch-size 32 --threads 1

A published WSF-ViT name is timed beside its baseline, which has the same weights and must agree in float32 first. Other
names are timm's; `baseline:NAME` is a baseline without its model, and `peers` the other wavelet networks and token
mixers, made for images of 32 pixels. `fused:NAME` is the copy for inference that `wsfvit.models.fuse` makes, with
its weights if NAME is in the run too; it is not trained. Candidates take turns. With --train the forward,
backward and AdamW of an update are timed too, with a learning rate of 0. With --compile all of them are compiled, the
baseline too; "reduce-overhead" replays CUDA graphs, for small batches.

Prints a table per mode: median, 20 % and 80 % quantiles, images/s, and speed relative to the baseline (above 1 is
faster); --out writes them as JSON. Takes about a second per model and round at 4 images of 224 pixels on a CPU.
"""

import argparse
import contextlib
import math
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models import resolve_model_input_args
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.baseline import BASELINE_CFGS, create_baseline
from benchmarks.common import (
    DTYPES,
    add_compile_options,
    add_precision_options,
    build_timing_parser,
    check_precision,
    set_up_device,
    write_run,
)
from benchmarks.timing import Timing, check_equal, classification_loss, inference_step, time_candidates, training_step
from wsfvit.factory.model import check_model_name
from wsfvit.layers import channel_attention, conv, mbconv
from wsfvit.models.fuse import fuse_for_inference
from wsfvit.utils.compiling import compile_options, set_memory_budget
from wsfvit.utils.errors import UserError, run_main
from wsfvit.utils.precision import autocast, memory_format
from wsfvit.utils.tables import markdown_table
from wsfvit.wavelets import functional

PREFIX = "baseline:"
FUSED_PREFIX = "fused:"
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
PEERS = (
    *("wavemix_lite_144_7", "wacnn_mobilenetv2", "wacnn_mobilenetv2_baseline"),
    *("wacnn_resnet18", "wacnn_resnet18_baseline"),
    *(f"{mixer}_vit_xs_patch4_32" for mixer in ("mwa", "afno", "gfn", "sa")),
)


# Special forms whose gain on a GPU was counted in generated code, not measured, and what turns each off.
FORMS: dict[str, list[tuple[Any, str, Any]]] = {
    "sigmoid_gelu": [(conv, "tanh_gelu_by_sigmoid", partial(F.gelu, approximate="tanh"))],
    "compiled_haar": [(rule, "compiled", staticmethod(rule.plain)) for rule in (functional._DWT, functional._IDWT)]
    + [(functional._SWT, "compiled", staticmethod(functional._SWT.plain))],
    "moments": [(module, "TOKENS_PER_CHANNEL", math.inf) for module in (channel_attention, mbconv)],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_timing_parser("benchmarks.models", __doc__)
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="NAME", help="timm names, baseline:NAME, fused:NAME, peers"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--img-size", type=int, default=224)
    add_precision_options(parser)
    parser.add_argument("--train", action="store_true", help="also time forward + backward + AdamW in training mode")
    parser.add_argument("--compile", nargs="?", const="default", choices=COMPILE_MODES, help="torch.compile everything")
    add_compile_options(parser)
    text = "form of scaled-dot-product attention (default: PyTorch's choice)"
    parser.add_argument("--attention", choices=("default", "efficient"), default="default", help=text)
    text = "turn off forms that this project adds: sigmoid_gelu and compiled_haar act only where it compiles for a GPU"
    parser.add_argument("--without", nargs="+", choices=FORMS, default=[], metavar="FORM", help=text + "; or moments")
    parser.set_defaults(repeats=10)
    args = parser.parse_args(argv)
    check_precision(parser, args)
    if (args.compile_options or args.memory_budget is not None) and not args.compile:
        parser.error("--compile-options and --memory-budget need --compile")
    return args


def build_models(names: list[str], img_size: int) -> dict[str, nn.Module]:
    """Candidates by name; the baseline of a published name follows it, with the same weights."""
    models: dict[str, nn.Module] = {}
    for name in (each for asked in names for each in (PEERS if asked == "peers" else (asked,))):
        if name.startswith(PREFIX):
            if name not in models:
                models[name] = _create_baseline(name.removeprefix(PREFIX), img_size)
            continue
        if name.startswith(FUSED_PREFIX):
            own = name.removeprefix(FUSED_PREFIX)
            models[name] = fuse_for_inference(models[own] if own in models else create_timm_model(own, img_size))
            continue
        models[name] = create_timm_model(name, img_size)
        if name in BASELINE_CFGS:
            models[PREFIX + name] = _create_baseline(name, img_size)
            models[PREFIX + name].load_state_dict(models[name].state_dict(), strict=True)
    return models


def _create_baseline(name: str, img_size: int) -> nn.Module:
    try:
        return create_baseline(name, img_size)
    except ValueError as err:
        raise UserError(f"{PREFIX}{name}: {err}") from err


def create_timm_model(name: str, img_size: int) -> nn.Module:
    """Build a model by timm's name, for the image size if it has a fixed one.

    Raises:
        UserError: the model does not exist or does not take the size.
    """
    check_model_name(name)
    try:
        # Only models that are built for one size take it.
        model: nn.Module = timm.create_model(**resolve_model_input_args(name, {"img_size": img_size}))
    except (AssertionError, TypeError, ValueError) as err:
        raise UserError(f"model {name} cannot be built for {img_size} pixels: {err}") from err
    return model


def check_models(models: dict[str, nn.Module], img_size: int, device: torch.device, seed: int) -> list[dict[str, Any]]:
    """Compare each model with its baseline in float32, outputs and gradients; a difference ends the program."""
    checks = []
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, img_size, img_size, generator=generator).to(device)
    for name in models:
        own = name.removeprefix(FUSED_PREFIX)
        if own != name and own in models:
            found = check_equal(name, models[name], models[own], x, gradients=False)
            checks.append({"model": name, "baseline": own, "relative_error": found})
        if PREFIX + name not in models:
            continue
        found = check_equal(name, models[name], models[PREFIX + name], x)
        checks.append({"model": name, "baseline": PREFIX + name, "relative_error": found})
    return checks


def random_batch(args: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Images (B, 3, img_size, img_size) and labels (B,) on the device, and the context of mixed precision."""
    dtype = DTYPES[args.dtype]
    generator = torch.Generator().manual_seed(args.seed)
    x = torch.randn(args.batch_size, 3, args.img_size, args.img_size, generator=generator)
    target = torch.randint(10, (args.batch_size,), generator=generator).to(device)  # the peers have 10 classes
    x = x.to(device=device, dtype=torch.float32 if args.amp else dtype, memory_format=memory_format(args))
    return x, target, partial(autocast, device, dtype if args.amp else None)


def time_models(models: dict[str, nn.Module], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Timings by mode ("inference", "training") and name."""
    x, target, precision = random_batch(args, device)
    for model in models.values():
        model.to(dtype=x.dtype, memory_format=memory_format(args))  # type: ignore[call-overload]

    def compiled(training: bool) -> dict[str, nn.Module]:
        if not args.compile:
            return models
        torch.compiler.reset()  # families share code, which is compiled a limited number of times
        set_memory_budget(args.memory_budget)
        options = compile_options(device.type, training, args.compile, args.compile_options)
        return {name: cast(nn.Module, torch.compile(model, options=options)) for name, model in models.items()}

    steps = {name: partial(inference_step, partial(m.eval(), x), precision) for name, m in compiled(False).items()}
    timings = {"inference": time_candidates(steps, args, device)}
    if args.train:
        steps = {}
        for name, model in compiled(True).items():
            if not name.startswith(FUSED_PREFIX):
                optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
                loss = partial(classification_loss, model.train(), x, target)
                steps[name] = partial(training_step, model, loss, precision, optimizer)
        timings["training"] = time_candidates(steps, args, device)
    return timings


def baseline_of(name: str, names: list[str]) -> str | None:
    """The baseline to relate a candidate to: its own, else the first one of the run."""
    own = name if name.startswith(PREFIX) else PREFIX + name.removeprefix(FUSED_PREFIX)
    if own in names:
        return own
    return next((other for other in names if other.startswith(PREFIX)), None)


def summarise(mode: str, timings: dict[str, Timing], models: dict[str, nn.Module], batch: int) -> list[dict[str, Any]]:
    """One record per candidate, printed as a table; `speed` is the baseline's time over the candidate's."""
    records, rows = [], []
    for name, timing in timings.items():
        baseline = baseline_of(name, list(timings))
        speed = timings[baseline].median / timing.median if baseline else None
        params, rate = sum(p.numel() for p in models[name].parameters()), batch / timing.median
        record = {"mode": mode, "model": name, "params": params, "images_per_second": rate, "baseline": baseline}
        records.append(record | {"speed": speed} | asdict(timing))
        cells = f"{params / 1e6:.1f}", *timing.cells(), f"{rate:.1f}", "" if speed is None else f"{speed:.2f}"
        rows.append([name, *cells])
    header = ["model", "params (M)", "ms", "20 to 80 %", "peak MiB", "images/s", "speed vs baseline"]
    print(f"\n{mode}\n\n{markdown_table(header, rows)}", flush=True)
    return records


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = set_up_device(args.device, args.threads)
    torch.manual_seed(args.seed)
    models = {name: model.to(device) for name, model in build_models(args.models, args.img_size).items()}
    checks = check_models(models, args.img_size, device, args.seed)
    for check in checks:
        print(f"{check['model']} agrees with its baseline, relative error {check['relative_error']}")

    set_up_device(args.device, args.threads, args.tf32)
    for owner, name, plain in (change for form in args.without for change in FORMS[form]):
        setattr(owner, name, plain)
    efficient = args.attention == "efficient"
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if efficient else contextlib.nullcontext():
        timings = time_models(models, args, device)
    results = [
        record for mode, by_name in timings.items() for record in summarise(mode, by_name, models, args.batch_size)
    ]
    write_run(args, checks=checks, results=results)


if __name__ == "__main__":
    run_main(main)
