#!/usr/bin/env bash
# bash scripts/wsfvit_t_384_1k.sh /path/to/imagenet-1k [num_gpus] [--initial-checkpoint FILE] [flags of train.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/launch.sh
finetune_imagenet configs/imagenet/wsfvit_t_384.yaml wsfvit_t_224 "$@"
