"""Command lines of cam_image.py, get_flops.py, predict, export and replay."""

import argparse
from collections.abc import Sequence

from wsfvit.cli.common import (
    DEFAULT_MODEL,
    Group,
    add_data_source,
    add_device_name,
    add_fuse,
    add_model_input,
    add_trust,
    build_parser,
    natural_int,
    positive_int,
)

# Names on the command line, and the classes of the grad-cam package behind them.
METHODS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "xgradcam": "XGradCAM",
    "elementwise": "GradCAMElementWise",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
}


def parse_cam_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses cam_image.py's command line."""
    return cam_parser().parse_args(argv)


def cam_parser() -> argparse.ArgumentParser:
    """Parser of cam_image.py."""
    parser = build_parser("Draw where a model sees the evidence for a class (class activation maps).")
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DIR",
        help="folder of images (same as --data-dir; default: ./images, made on first use)",
    )
    add_data_source(parser)
    parser.add_argument("--split", default="validation", help="split of --dataset")
    parser.add_argument(
        "--num-images",
        type=positive_int,
        default=8,
        metavar="N",
        help="images to draw, spread evenly over what there is",
    )
    parser.add_argument(
        "--models",
        "--model",
        "-m",
        nargs="+",
        metavar="NAME",
        help=f"models, side by side; default what the checkpoints name, else {DEFAULT_MODEL}",
    )
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="FILE", help="one weights file per model")
    add_weights(parser)
    add_model_input(parser)
    add_picture_input(parser)
    parser.add_argument(
        "--no-crop",
        action="store_true",
        help="show the model the whole image at its own aspect ratio (any-size models)",
    )
    parser.add_argument("--method", nargs="+", default=["gradcam"], choices=METHODS, help="methods, side by side")
    parser.add_argument(
        "--layer", metavar="NAME", help="module whose output is explained (default: the last useful stage)"
    )
    parser.add_argument("--target", metavar="CLASS", help="class index or name (default: what the model predicts)")
    parser.add_argument(
        "--subbands", action="store_true", help="also draw the wavelet subbands that the stem sees, to OUT-subbands.png"
    )
    parser.add_argument("--out", default="output/cam.png", metavar="FILE.png", help="picture to write")
    return parser


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


def add_replay_args(parser: argparse.ArgumentParser) -> None:
    """Adds everything that the replay command takes."""
    parser.add_argument("dump", metavar="FILE", help="file of the folder bad-steps of a run")
    parser.add_argument("--data-dir", metavar="DIR", help="data folder (default: the run's)")
    parser.add_argument("-j", "--workers", type=natural_int, metavar="N", help="loading processes (default: the run's)")
    add_device_name(parser)
    add_trust(parser)


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
