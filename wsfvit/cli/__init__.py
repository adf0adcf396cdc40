"""Command lines of the four scripts."""

from wsfvit.cli.tools import cam_parser, flops_parser, parse_cam_args, parse_flops_args
from wsfvit.cli.train import parse_train_args, train_parser
from wsfvit.cli.validate import parse_validate_args, validate_parser

__all__ = [
    "cam_parser",
    "flops_parser",
    "parse_cam_args",
    "parse_flops_args",
    "parse_train_args",
    "parse_validate_args",
    "train_parser",
    "validate_parser",
]
