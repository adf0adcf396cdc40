#!/usr/bin/env python3
"""Measure a checkpoint's accuracy over every image of a split.

python validate.py --dataset digits --checkpoint output/train/RUN/model_best.pth.tar
python validate.py /data/imagenet --model wsfvit_t_224 --checkpoint wsfvit_t_224.pth.tar --results-file result.json
python validate.py /data/imagenet --model wsfvit_t_224 --checkpoint wsfvit_t_224.pth.tar --img-size 288 --use-ema
"""

from wsfvit.engine.args import parse_validate_args
from wsfvit.engine.evaluate import run_validation
from wsfvit.errors import run_main


def main() -> None:
    run_validation(parse_validate_args())


if __name__ == "__main__":
    run_main(main)
