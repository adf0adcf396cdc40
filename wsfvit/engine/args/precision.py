"""Flags of precision and compilation that training and validation share."""

from wsfvit.engine.args.common import Group
from wsfvit.engine.args.refused import accepted


def add_precision(group: Group) -> None:
    """--amp-impl and --model-dtype; --amp and --amp-dtype are the device's."""
    group.add_argument(
        "--amp-impl", type=accepted("--amp-impl", "native"), default="native", metavar="NAME", help="native alone"
    )
    group.add_argument(
        "--model-dtype", choices=("float32", "bfloat16", "float16"), help="data type of the weights (default: float32)"
    )


def add_compile(group: Group) -> None:
    """--torchcompile, --torchcompile-mode and --torchcompile-options."""
    group.add_argument(
        "--torchcompile",
        nargs="?",
        const="inductor",
        metavar="BACKEND",
        help="torch.compile (default backend: inductor)",
    )
    group.add_argument("--torchcompile-mode", metavar="MODE", help="default, reduce-overhead, max-autotune, ...")
    group.add_argument(
        "--torchcompile-options",
        nargs="+",
        metavar="NAME=VALUE",
        help="inductor's settings, as in torch._inductor.config, for example realize_reads_threshold=8",
    )
