"""Command line of get_flops.py."""

import argparse
from collections.abc import Sequence

from wsfvit.engine.args.common import DEFAULT_MODEL, add_model_input, build_parser, natural_int, positive_int


def parse_flops_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses get_flops.py's command line."""
    return flops_parser().parse_args(argv)


def flops_parser() -> argparse.ArgumentParser:
    """Parser of get_flops.py."""
    parser = build_parser("Count a model's parameters, multiply-accumulates and activations.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="model name, any of timm's too")
    which.add_argument(
        "--all",
        action="store_true",
        help="table of every registered wsfvit model at its own input size, beside the published figures",
    )
    add_model_input(parser, data_config=False)
    parser.add_argument(
        "-b", "--batch-size", type=positive_int, default=1, metavar="N", help="count a batch of N images"
    )
    parser.add_argument(
        "--depth", type=natural_int, default=2, metavar="N", help="levels of modules in the table of one model"
    )
    parser.add_argument("--format", default="markdown", choices=("markdown", "csv"), help="format of the table")
    parser.add_argument("--out", default="", metavar="FILE", help="write to FILE instead of the terminal")
    return parser
