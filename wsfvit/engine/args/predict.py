"""Command line of ``python -m wsfvit predict``."""

import argparse

from wsfvit.engine.args.common import (
    Group,
    add_device_name,
    add_fuse,
    add_model_input,
    add_trust,
    natural_int,
    positive_int,
)


def add_predict_args(parser: argparse.ArgumentParser) -> None:
    """Adds everything that the predict command takes."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or a folder: every image below it")
    parser.add_argument("--checkpoint", metavar="FILE", help=".pth.tar, .pth, .pt or .safetensors file")
    parser.add_argument("--model", "-m", metavar="NAME", help="model name (default: what the checkpoint names)")
    add_weights(parser)
    add_model_input(parser)
    add_picture_input(parser)
    add_fuse(parser)
    parser.add_argument(
        "--class-map",
        default="",
        metavar="FILE.txt",
        help="class names, one per line (default: ImageNet's if they fit)",
    )
    parser.add_argument("--topk", type=positive_int, default=5, metavar="N", help="classes to print for each image")
    parser.add_argument("--out", default="", metavar="FILE.png", help="draw the images with their predictions")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image and line")


def add_weights(group: Group) -> None:
    """Where the weights come from, other than --checkpoint."""
    group.add_argument("--pretrained", action="store_true", help="timm's published weights, downloaded once")
    group.add_argument(
        "--use-ema", action="store_true", help="use the moving average of the weights where the file has it"
    )
    add_trust(group)


def add_picture_input(group: Group) -> None:
    """How pictures reach the model, and what its classes are called."""
    group.add_argument("--crop-mode", choices=("center", "squash", "border"), help="how the evaluation crop is made")
    group.add_argument("-b", "--batch-size", type=positive_int, default=16, metavar="N", help="images per forward pass")
    group.add_argument("-j", "--workers", type=natural_int, default=4, metavar="N", help="threads that read images")
    add_device_name(group)
