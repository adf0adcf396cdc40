"""Command line of validate.py."""

import argparse
from collections.abc import Sequence

from wsfvit.engine.args.common import (
    add_data_source,
    add_device,
    add_loader,
    add_model_input,
    add_trust,
    build_parser,
    positive_int,
)


def parse_validate_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses validate.py's command line."""
    return validate_parser().parse_args(argv)


def validate_parser() -> argparse.ArgumentParser:
    """Parser of validate.py."""
    parser = build_parser("Measure a checkpoint's accuracy over every image of a split.")
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder (same as --data-dir)")
    add_data_source(parser)
    parser.add_argument("--split", default="validation", help="dataset split")
    parser.add_argument("--num-samples", type=positive_int, metavar="N", help="sample count of a streaming dataset")
    parser.add_argument("--model", "-m", metavar="NAME", help="model name (default: what the checkpoint names)")
    add_model_input(parser)
    parser.add_argument("--crop-mode", choices=("center", "squash", "border"), help="how the evaluation crop is made")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=256, metavar="N", help="batch size")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=".pth.tar, .pth, .pt or .safetensors file")
    add_trust(parser)
    parser.add_argument(
        "--use-ema", action="store_true", help="use the moving average of the weights where the file has it"
    )
    parser.add_argument("--channels-last", action="store_true", help="use the channels-last memory layout")
    add_device(parser)
    add_loader(parser)
    parser.add_argument(
        "--log-freq", type=positive_int, default=10, metavar="N", help="batches between two progress lines"
    )
    parser.add_argument("--results-file", default="", metavar="FILE", help="write the result to FILE.json or FILE.csv")
    return parser
