"""Command line of ``python -m wsfvit replay``."""

import argparse

from wsfvit.engine.args.common import add_device_name, add_trust, natural_int


def add_replay_args(parser: argparse.ArgumentParser) -> None:
    """Adds everything that the replay command takes."""
    parser.add_argument("dump", metavar="FILE", help="file of the folder bad-steps of a run")
    parser.add_argument("--data-dir", metavar="DIR", help="data folder (default: the run's)")
    parser.add_argument("-j", "--workers", type=natural_int, metavar="N", help="loading processes (default: the run's)")
    add_device_name(parser)
    add_trust(parser)
