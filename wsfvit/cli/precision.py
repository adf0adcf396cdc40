"""Flags of precision and compilation shared by training and validation."""

from wsfvit.cli.common import Group, fraction
from wsfvit.cli.refused import add_accepted


def add_precision(group: Group) -> None:
    """--amp-impl and --model-dtype; --amp and --amp-dtype are the device's."""
    add_accepted(group, "--amp-impl", "native")
    dtypes, text = ("float32", "bfloat16", "float16"), "dtype of the weights (default: float32)"
    group.add_argument("--model-dtype", choices=dtypes, help=text)


def add_compile(group: Group) -> None:
    """--torchcompile, --torchcompile-mode and --torchcompile-options, see `wsfvit.utils.compiling`."""
    add = group.add_argument
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile with BACKEND, or with inductor")
    add("--torchcompile-mode", metavar="MODE", help="default, reduce-overhead, max-autotune, ...")
    text = "settings of torch._inductor.config, for example realize_reads_threshold=8"
    add("--torchcompile-options", nargs="+", metavar="NAME=VALUE", help=text)


def add_memory_budget(group: Group) -> None:
    """--torchcompile-memory-budget, for training."""
    text = "share of the activations that compiled training keeps, for example 0.5: the others are recomputed in the "
    text += "backward pass, the cheapest first; less memory, slower (default: 1)"
    group.add_argument("--torchcompile-memory-budget", type=fraction, metavar="SHARE", help=text)
