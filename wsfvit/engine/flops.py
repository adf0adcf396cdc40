"""Parameters, multiply-accumulates and activations of a model, by fvcore's rules and the ones it lacks.

One multiply-accumulate (MAC) of a convolution, linear layer or matrix product counts 1; norms and pooling count by
fvcore's own rules. The published table's "FLOPs" are these MACs. fvcore gives fused attention 0; here it costs its two
matrix products.
"""

import argparse
import copy
import logging
import math
import re
from dataclasses import dataclass
from typing import Any

import timm
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import generic_activation_jit, get_shape
from torch import nn

from wsfvit.engine.build import build_model, resolve_data
from wsfvit.errors import UserError

# Parameters (M) and "FLOPs" (G, in fact MACs) as printed in the WSF-ViT release of February 2026, at the model's size.
PUBLISHED = {
    "wsfvit_p0_224": (2.9, 0.62),
    "wsfvit_p1_224": (5.0, 1.04),
    "wsfvit_p2_224": (6.0, 1.35),
    "wsfvit_n_224": (10.6, 1.97),
    "wsfvit_t_224": (23.3, 4.6),
    "wsfvit_s_224": (41.7, 7.5),
    "wsfvit_m_224": (69.7, 12.4),
    "wsfvit_b_224": (100.0, 17.0),
    "wsfvit_b_256": (100.0, 22.2),
    "wsfvit_t_384": (23.3, 14.1),
    "wsfvit_s_384": (41.8, 22.9),
    "wsfvit_m_384": (69.7, 37.8),
    "wsfvit_b_384": (100.0, 51.7),
}

_SDPA = "aten::scaled_dot_product_attention"
# aten operators without a rule whose cost is of the order of a matrix product; the rest are elementwise or move data.
_HEAVY = re.compile(r"mm$|mv$|dot|conv|attention|einsum|matmul|linear|fft|cdist|bilinear$|lstm|gru|rnn")


@dataclass(frozen=True)
class Complexity:
    """Figures of one forward pass.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulates.
        activations: Elements that convolutions, linear layers and matrix products put out.
        uncounted: Operators without a rule that are elementwise or move data, with the number of calls; they count 0.
        unknown: Operators without a rule that may cost like a matrix product, with the number of calls: ``macs`` is too
            low by what they cost.
    """

    params: int
    macs: int
    activations: int
    uncounted: dict[str, int]
    unknown: dict[str, int]


def count_complexity(model: nn.Module, *inputs: torch.Tensor) -> Complexity:
    """Traces one forward pass of ``model`` in eval mode on ``inputs`` (for a classifier: images (B, C, H, W))."""
    model.eval()
    flops = FlopCountAnalysis(model, inputs).set_op_handle(_SDPA, _sdpa_macs).unsupported_ops_warnings(False)
    activations = ActivationCountAnalysis(model, inputs).set_op_handle(_SDPA, generic_activation_jit())
    # A module that is never called (an identity in eval mode) is no news to a user of these figures.
    flops.uncalled_modules_warnings(False)
    activations.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        macs, elements = flops.total(), activations.total()
    without_rule = dict(flops.unsupported_ops())
    unknown = {name: calls for name, calls in without_rule.items() if _may_be_heavy(name)}
    return Complexity(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=int(macs),
        activations=int(elements),
        uncounted={name: calls for name, calls in without_rule.items() if name not in unknown},
        unknown=unknown,
    )


def run_flops(args: argparse.Namespace) -> list[Complexity]:
    """Runs get_flops.py: prints one model's figures, or the table of all.

    Raises:
        UserError: no such model, or a size it cannot take.
    """
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    names = timm.list_models("wsfvit*") if args.all else [args.model]
    if not names:
        raise UserError("no wsfvit model is registered")
    if not args.all:
        return [_print_one(args)]
    return _print_table(args, names)


def _print_one(args: argparse.Namespace) -> Complexity:
    found, shape = _count_named(args, args.model)
    print(f"{args.model}, input {'x'.join(map(str, shape))}")
    print(f"  parameters   {found.params / 1e6:.3f} M")
    print(f"  MACs         {found.macs / 1e9:.3f} G  (multiply-accumulates; the published 'FLOPs' column is this)")
    print(f"  FLOPs        {2 * found.macs / 1e9:.3f} G  (2 x MACs)")
    print(f"  activations  {found.activations / 1e6:.3f} M elements")
    _print_list("not counted, elementwise or data movement", found.uncounted)
    _print_list("WARNING, no rule for these and they may be expensive, so the MACs are too low", found.unknown)
    return found


def _print_list(title: str, operators: dict[str, int]) -> None:
    if operators:
        print(f"  {title}: " + ", ".join(f"{name} x{calls}" for name, calls in sorted(operators.items())))


def _print_table(args: argparse.Namespace, names: list[str]) -> list[Complexity]:
    print("| model | input | params (M) | published | MACs (G) | published | activations (M) | not covered by a rule |")
    print("|---|---|---|---|---|---|---|---|")
    results = []
    for name in names:
        found, shape = _count_named(args, name)
        # The figures were published for each model's own size and 1,000 classes.
        asked = (args.img_size, args.input_size, args.num_classes, args.in_chans, *args.model_kwargs)
        own_setting = args.batch_size == 1 and not any(asked)
        params, macs = PUBLISHED.get(name, ("-", "-")) if own_setting else ("-", "-")
        print(
            f"| {name} | {'x'.join(map(str, shape))} | {found.params / 1e6:.2f} | {params} | {found.macs / 1e9:.3f} "
            f"| {macs} | {found.activations / 1e6:.2f} | {', '.join(found.unknown) or '-'} |",
            flush=True,
        )
        results.append(found)
    return results


def _count_named(args: argparse.Namespace, name: str) -> tuple[Complexity, tuple[int, ...]]:
    args = copy.copy(args)
    args.model = name
    model = build_model(args)
    args.mean = args.std = None
    shape = (args.batch_size, *resolve_data(args, model)["input_size"])
    try:
        return count_complexity(model, torch.zeros(shape)), shape
    except (AssertionError, RuntimeError, ValueError) as err:
        raise UserError(f"model {name} cannot be run on input {'x'.join(map(str, shape))}: {err}") from err


def _sdpa_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """MACs of softmax(Q K^T) V: queries (..., N, d), keys (..., M, d), values (..., M, e) cost (...) N M (d + e)."""
    query, key, value = (get_shape(item) for item in inputs[:3])
    return int(math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _may_be_heavy(name: str) -> bool:
    namespace, _, operator = name.partition("::")
    # Outside aten are custom operators and Python functions, about which nothing is known.
    return namespace != "aten" or bool(_HEAVY.search(operator.rstrip("_")))
