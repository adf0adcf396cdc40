#!/usr/bin/env python3
"""Train an image classifier.

python train.py --dataset digits -c configs/digits/wsfvit_p0.yaml
python train.py /data/imagenet -c configs/imagenet/wsfvit_t_224.yaml --amp-dtype bfloat16
python train.py --dataset hfds/PATH_TO_CIFAR10 --val-split test --model wsfvit_p1_224 --img-size 64 --num-classes 10
torchrun --nproc-per-node 8 train.py /data/imagenet -c configs/imagenet/wsfvit_t_224.yaml --grad-accum-steps 2

SIGTERM, SIGUSR1 or Ctrl-C: saves after the current update and ends with exit code 75; --resume auto continues.
"""

from wsfvit.cli.train import train_parser
from wsfvit.train.classify import run_training
from wsfvit.utils.errors import run_main
from wsfvit_cli import run_command


def main() -> None:
    run_command(train_parser(), run_training)


if __name__ == "__main__":
    run_main(main)
