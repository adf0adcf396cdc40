#!/usr/bin/env bash
# bash scripts/wsfvit_t_224_1k.sh /path/to/imagenet-1k [num_gpus] [flags of train.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/launch.sh
train_imagenet configs/imagenet/wsfvit_t_224.yaml "$@"
