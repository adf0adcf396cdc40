#!/usr/bin/env bash
# bash scripts/wsfvit_s_384_1k.sh /path/to/imagenet-1k [num_gpus] [--initial-checkpoint FILE] [flags of train.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/launch.sh
finetune_imagenet configs/imagenet/wsfvit_s_384.yaml wsfvit_s_224 "$@"
