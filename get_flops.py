#!/usr/bin/env python3
"""Count a model's parameters, multiply-accumulates and activations.

python get_flops.py --model wsfvit_t_224
python get_flops.py --model wsfvit_t_224 --img-size 384 --num-classes 10
python get_flops.py --all
"""

from wsfvit.analysis.flops import run_flops
from wsfvit.cli.tools import flops_parser
from wsfvit.utils.errors import run_main
from wsfvit_cli import run_command


def main() -> None:
    run_command(flops_parser(), run_flops)


if __name__ == "__main__":
    run_main(main)
