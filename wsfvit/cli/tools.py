"""Parsers of the classification commands beside train and validate, and of weights and info."""

import argparse
from collections.abc import Iterable

from wsfvit.cli import common
from wsfvit.cli.common import DEFAULT_MODEL, Group, build_parser, natural_int, positive_int

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


def cam_parser() -> argparse.ArgumentParser:
    """Parser of cam_image.py and ``wsfvit cam``."""
    parser = build_parser("Draw where a model sees the evidence for a class (class activation maps).")
    add = parser.add_argument
    add("data", nargs="?", metavar="DIR", help="folder of images (or --data-dir; default: ./images, made on first use)")
    common.add_data_source(parser)
    add("--split", default="validation", help="split of --dataset")
    add("--num-images", type=positive_int, default=8, metavar="N", help="images to draw, spread evenly over the data")
    text = f"models, side by side (default: those that the checkpoints name, else {DEFAULT_MODEL})"
    add("--models", "--model", "-m", nargs="+", metavar="NAME", help=text)
    text = "one weights file per model, or 'pretrained' for timm's weights of that model"
    add("--checkpoint", nargs="+", default=[], metavar="FILE", help=text)
    add_weights(parser)
    common.add_model_input(parser)
    add_image_input(parser)
    add("--no-crop", action="store_true", help="use the whole image at its own aspect ratio (any-size models)")
    add("--method", nargs="+", default=["gradcam"], choices=METHODS, help="methods, side by side")
    add("--layer", metavar="NAME", help="module to explain (default: the last stage with a map of at least 4x4)")
    add("--target", metavar="CLASS", help="class index or name (default: what the model predicts)")
    add("--subbands", action="store_true", help="also draw the wavelet subbands of the stem, to OUT-subbands.png")
    add("--out", default="output/cam.png", metavar="FILE.png", help="figure to write")
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """Parser of ``wsfvit predict``."""
    parser = build_parser("Print the most probable classes of images, and draw them on request.")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image file, or a folder: every image below it")
    add("--checkpoint", metavar="FILE", help=".pth.tar, .pth, .pt or .safetensors file")
    add("--model", "-m", metavar="NAME", help="model name (default: what the checkpoint names)")
    add_weights(parser)
    common.add_model_input(parser)
    add_image_input(parser)
    common.add_fuse(parser, automatic=True)
    add("--class-map", default="", metavar="FILE.txt", help="class names, one per line (default: ImageNet's)")
    add("--topk", type=positive_int, default=5, metavar="N", help="classes to print for each image")
    add("--out", default="", metavar="FILE.png", help="draw the images with their predictions")
    add("--json", action="store_true", help="print one JSON object per image and line")
    return parser


def add_weights(group: Group) -> None:
    """Weights, other than those of --checkpoint."""
    group.add_argument("--pretrained", action="store_true", help="published weights: timm's, or see wsfvit weights")
    common.add_use_ema(group)
    common.add_trust(group)


def add_image_input(group: Group) -> None:
    """How images are cropped, batched and read, and the device."""
    add = group.add_argument
    add("--crop-mode", choices=("center", "squash", "border"), help="how the evaluation crop is made")
    add("-b", "--batch-size", type=positive_int, default=16, metavar="N", help="images per forward pass")
    add("-j", "--workers", type=natural_int, default=4, metavar="N", help="threads that read images")
    common.add_device_name(group)


# What each format is, for the help text.
FORMATS = {
    "onnx": "ONNX, for ONNX Runtime and its relatives",
    "torch": "torch.export program, for torch.export.load",
    "aoti": "compiled AOTInductor package, for torch._inductor.aoti_load_package; needs a C++ compiler",
}


def export_parser() -> argparse.ArgumentParser:
    """Parser of ``wsfvit export``."""
    parser = build_parser("Write a model as ONNX, torch.export program or AOTInductor package.")
    add = parser.add_argument
    add("--model", "-m", metavar="NAME", help="model name (default: what the checkpoint names)")
    add("--checkpoint", metavar="FILE", help=".pth.tar, .pth, .pt or .safetensors file (default: random weights)")
    add_weights(parser)
    common.add_model_input(parser)
    common.add_fuse(parser)
    add("--class-map", default="", metavar="FILE.txt", help="class names, one per line, for the description")
    text = "file to write, .onnx or .pt2; FILE.json beside it describes the input and the classes"
    add_export_file(parser, FORMATS, text)
    add("-b", "--batch-size", type=positive_int, default=1, metavar="N", help="images per call")
    add("--dynamic-batch", action="store_true", help="accept any number of images per call")
    text = "compare the exported model with PyTorch on random images before writing it"
    common.add_switch(parser, "--check", text, default=True)
    add("--device", default="cpu", metavar="NAME", help="device to export for, cpu or cuda (torch, aoti)")
    return parser


def add_export_file(group: Group, formats: Iterable[str], output: str) -> None:
    """Format, one of ``FORMATS``, and name of the exported file; ``output`` describes the file."""
    text = "; ".join(f"{name}: {FORMATS[name]}" for name in formats)
    group.add_argument("--format", choices=formats, default="onnx", help=text)
    group.add_argument("--output", "-o", required=True, metavar="FILE", help=output)


def replay_parser() -> argparse.ArgumentParser:
    """Parser of ``wsfvit replay``."""
    parser = build_parser("Recompute a non-finite training step and report the first module where it began.")
    add = parser.add_argument
    add("dump", metavar="FILE", help="file in the folder bad-steps of a run")
    add("--data-dir", metavar="DIR", help="data folder (default: the run's)")
    add("-j", "--workers", type=natural_int, metavar="N", help="dataloader workers (default: the run's)")
    common.add_device_name(parser)
    common.add_trust(parser)
    return parser


def flops_parser() -> argparse.ArgumentParser:
    """Parser of get_flops.py and ``wsfvit flops``."""
    parser = build_parser("Count a model's parameters, multiply-accumulates and activations.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help="model name, any of timm's too")
    text = "table of every registered wsfvit model at its own input size, beside the published figures"
    which.add_argument("--all", action="store_true", help=text)
    common.add_model_input(parser, data_config=False)
    add = parser.add_argument
    add("-b", "--batch-size", type=positive_int, default=1, metavar="N", help="count a batch of N images")
    add("--depth", type=natural_int, default=2, metavar="N", help="levels of modules in the table of one model")
    text = "fvcore: also count one model with fvcore, and name the operators that it leaves out"
    add("--counter", default="ours", choices=("ours", "fvcore"), help=text)
    add("--format", default="markdown", choices=("markdown", "csv"), help="format of the table")
    add("--out", default="", metavar="FILE", help="write to FILE instead of the terminal")
    return parser


def plot_parser() -> argparse.ArgumentParser:
    """Parser of ``wsfvit plot``."""
    parser = build_parser("Draw loss, accuracy and learning rate of training runs over each other.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, folder of run folders, or csv file")
    parser.add_argument("--out", default="output/curves.png", metavar="FILE.png", help="figure to write")
    return parser


def weights_parser() -> argparse.ArgumentParser:
    """Parser of ``wsfvit weights``."""
    parser = build_parser("List the published weights, or fetch and check a file for --pretrained.")
    add = parser.add_argument
    add("action", nargs="?", default="list", choices=("list", "get"), help="list them, or get SOURCE")
    add("source", nargs="?", metavar="SOURCE", help="listed name; with --model a URL, hf://OWNER/REPO/FILE or a file")
    add("--model", "-m", metavar="NAME", help="model that the weights of SOURCE are for (default: SOURCE)")
    add("--force", action="store_true", help="fetch again what is in the cache")
    return parser


def info_parser() -> argparse.ArgumentParser:
    """Parser of ``wsfvit info``."""
    return build_parser("Print versions, devices, models, wavelet and data backends, and environment variables.")
