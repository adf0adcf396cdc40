"""Parser of validate.py: timm's flags with timm's meaning."""

import argparse
from collections.abc import Sequence

from wsfvit.cli import common, precision, refused
from wsfvit.cli.common import Group, natural_int, positive_int


def parse_validate_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse validate.py's command line."""
    return validate_parser().parse_args(argv)


def validate_parser() -> argparse.ArgumentParser:
    """Parser of validate.py."""
    parser = common.build_parser("Measure the accuracy of one or several models over every image of a split.")
    parser.add_argument("data", nargs="?", metavar="DIR", help="data folder (same as --data-dir)")
    _add_data(parser.add_argument_group("Dataset parameters"))
    _add_model(parser.add_argument_group("Model parameters"))
    _add_input(parser.add_argument_group("Input parameters"))
    _add_device(parser.add_argument_group("Device parameters"))
    _add_results(parser.add_argument_group("Result parameters"))
    refused.add_refused(parser, refused.REFUSED_VALIDATE)
    return parser


def _add_data(group: Group) -> None:
    add = group.add_argument
    common.add_data_source(group)
    add("--split", default="validation", metavar="NAME", help="dataset split")
    add("--num-samples", type=positive_int, metavar="N", help="sample count of a streaming dataset")
    add("--real-labels", default="", metavar="FILE", help="JSON file of ImageNet's reassessed labels (ReaL)")
    text = "text file with the model's class index of each of the data's classes, one per line; others are left out"
    add("--valid-labels", default="", metavar="FILE", help=text)
    text = "take the data's labels for the model's classes although their names differ from the checkpoint's"
    add("--labels-by-position", action="store_true", help=text)
    common.add_loader(group)


def _add_model(group: Group) -> None:
    add = group.add_argument
    text = "model name (default: what the checkpoint names); or several: a text file of names, a pattern such as "
    text += "'convnext_*', or all, with timm's pretrained weights"
    add("--model", "-m", metavar="NAME", help=text)
    text = ".pth.tar, .pth, .pt or .safetensors file, or a folder of them (default: timm's pretrained weights)"
    add("--checkpoint", default="", metavar="PATH", help=text)
    add("--pretrained", action="store_true", help="timm's pretrained weights, the default without --checkpoint")
    common.add_trust(group)
    common.add_use_ema(group)
    add("--gp", metavar="POOL", help="global pooling: avg, max, avgmax, ... (default: the model's)")
    text = "merge the parallel branches of reparameterizable models (RepVGG, MobileOne, FastViT) as timm does; other "
    add("--reparam", action="store_true", help=text + "models are unchanged")
    common.add_fuse(group, automatic=True)


def _add_input(group: Group) -> None:
    add = group.add_argument
    common.add_model_input(group)
    add("--use-train-size", action="store_true", help="evaluate at the training size, not the test size")
    add("--crop-mode", choices=("center", "squash", "border"), help="how the evaluation crop is made")
    add("--crop-border-pixels", type=natural_int, metavar="N", help="pixels to cut off at every border")
    add("-b", "--batch-size", type=positive_int, default=256, metavar="N", help="batch size of each process")
    add("--retry", action="store_true", help="halve the batch size when memory runs out (always with several models)")


def _add_device(group: Group) -> None:
    common.add_device(group)
    precision.add_precision(group)
    common.add_switch(group, "--channels-last", "use the channels-last memory layout")
    common.add_switch(group, "--fast-norm", "timm's norm layers in the lower precision of --amp")
    precision.add_compile(group)


def _add_results(group: Group) -> None:
    add = group.add_argument
    add("--log-freq", type=positive_int, default=10, metavar="N", help="batches between two progress lines")
    add("--results-file", default="", metavar="FILE", help="write the results to FILE, updated after every model")
    text = "write the accuracy of each class and the confusion matrix: a table to FILE.csv, a figure to FILE.png"
    add("--confusion-matrix", nargs="+", default=[], metavar="FILE", help=text)
    add("--results-format", default="csv", choices=("csv", "json"), help="format without .csv or .json in the name")
