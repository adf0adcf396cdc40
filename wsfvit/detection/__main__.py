"""``python -m wsfvit.detection COMMAND``: the commands of the detection room; ``COMMAND --help`` explains each.

A command is a module of this room with ``main(argv, prog)``, imported only when it is asked for.
"""

import argparse
import importlib
import sys

from wsfvit.cli.common import Parser
from wsfvit.utils.errors import run_main

COMMANDS = {
    "train": "train a detector on data in COCO's format",
    "validate": "measure the average precision of boxes and masks of a checkpoint",
    "predict": "find objects in pictures: drawings and a JSON file",
    "export": "write a detector as ONNX or as a torch.export program",
    "shapes": "write generated pictures in COCO's format, to try all of this on",
    "flops": "count a detector's parameters and multiply-accumulates, beside the published table",
}


def main() -> None:
    """Hands the command line to the command's module."""
    parser = Parser(
        prog="python -m wsfvit.detection",
        description="Mask R-CNN and Cascade Mask R-CNN on any timm backbone.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:<10}{meaning}" for name, meaning in COMMANDS.items()),
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    command = parser.parse_args(sys.argv[1:2]).command
    importlib.import_module(f"wsfvit.detection.{command}").main(sys.argv[2:], f"{parser.prog} {command}")


if __name__ == "__main__":
    run_main(main)
