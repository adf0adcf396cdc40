"""Command line of ``python -m wsfvit export``."""

import argparse

from wsfvit.engine.args.common import add_fuse, add_model_input, positive_int
from wsfvit.engine.args.predict import add_weights

# What each format is, for the help text.
FORMATS = {
    "onnx": "ONNX, for ONNX Runtime and its relatives",
    "torch": "torch.export program, for torch.export.load",
    "aoti": "compiled AOTInductor package, for torch._inductor.aoti_load_package; needs a C++ compiler",
}


def add_export_args(parser: argparse.ArgumentParser) -> None:
    """Adds everything that the export command takes."""
    parser.add_argument("--model", "-m", metavar="NAME", help="model name (default: what the checkpoint names)")
    parser.add_argument(
        "--checkpoint", metavar="FILE", help=".pth.tar, .pth, .pt or .safetensors file (default: random weights)"
    )
    add_weights(parser)
    add_model_input(parser)
    add_fuse(parser)
    parser.add_argument(
        "--class-map", default="", metavar="FILE.txt", help="class names, one per line, for the description"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="; ".join(f"{name}: {text}" for name, text in FORMATS.items()),
    )
    parser.add_argument(
        "--output",
        "-o",
        required=True,
        metavar="FILE",
        help="file to write, .onnx or .pt2; FILE.json beside it describes the input and the classes",
    )
    parser.add_argument(
        "-b", "--batch-size", type=positive_int, default=1, metavar="N", help="images per call of a fixed batch"
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="any number of images per call")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run what was exported on random images and compare with PyTorch before anything is written",
    )
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="where it is to run: cpu, cuda (torch and aoti alone)"
    )
