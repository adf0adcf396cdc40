"""``python -m wsfvit.video COMMAND``: video prediction with SimVP and a WSF-ViT translator."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from wsfvit.cli.common import Parser
from wsfvit.utils.errors import run_main

# Each is a module of this package with a function `main(argv)`, imported only when it is asked for.
COMMANDS = {
    "train": "train on Moving MNIST or your own sequences, choose on validation, test once",
    "validate": "measure a checkpoint beside the baselines, frame by frame",
    "predict": "predict how sequences go on: strips of frames and animations",
    "flops": "count parameters and multiply-accumulates, part by part",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command named first with the arguments behind it."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(
        prog="python -m wsfvit.video",
        description="Video prediction with SimVP and a WSF-ViT translator.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
    parser.epilog = f"commands:\n{names}\n\npython -m wsfvit.video COMMAND --help explains the options of one"
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    command = parser.parse_args(argv[:1]).command
    importlib.import_module(f"wsfvit.video.{command}").main(argv[1:])


if __name__ == "__main__":
    run_main(main)
