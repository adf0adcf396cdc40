#!/usr/bin/env python3
"""Measure the accuracy of one or several models over every image of a split.

python validate.py --dataset digits --checkpoint output/train/RUN/model_best.pth.tar
python validate.py /data/imagenet --model wsfvit_t_224 --checkpoint wsfvit_t_224.pth.tar --img-size 288 --use-ema
python validate.py /data/imagenet --checkpoint output/train/RUN --results-file epochs.csv
python validate.py /data/imagenet --model 'convnext_*' --amp --results-file convnext.csv
torchrun --nproc-per-node 4 validate.py /data/imagenet --model wsfvit_t_224 --checkpoint wsfvit_t_224.pth.tar
"""

from wsfvit.cli.validate import validate_parser
from wsfvit.eval.validate import run_validation_command
from wsfvit.utils.errors import run_main
from wsfvit_cli import run_command


def main() -> None:
    run_command(validate_parser(), run_validation_command)


if __name__ == "__main__":
    run_main(main)
