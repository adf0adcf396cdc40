#!/usr/bin/env python3
"""Measure the accuracy of one or several models over every image of a split.

python validate.py --dataset digits --checkpoint output/train/RUN/model_best.pth.tar
python validate.py /data/imagenet --model wsfvit_t_224 --checkpoint wsfvit_t_224.pth.tar --img-size 288 --use-ema
python validate.py /data/imagenet --checkpoint output/train/RUN --results-file epochs.csv
python validate.py /data/imagenet --model 'convnext_*' --amp --results-file convnext.csv
torchrun --nproc-per-node 4 validate.py /data/imagenet --model wsfvit_t_224 --checkpoint wsfvit_t_224.pth.tar
"""

import sys

from wsfvit.cli.validate import parse_validate_args
from wsfvit.eval.validate import run_validation
from wsfvit.utils.errors import run_main


def main() -> None:
    if any("error" in row for row in run_validation(parse_validate_args())):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
