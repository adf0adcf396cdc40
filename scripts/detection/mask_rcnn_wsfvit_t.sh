#!/usr/bin/env bash
# bash scripts/detection/mask_rcnn_wsfvit_t.sh /path/to/coco [num_gpus] [--pretrained-path FILE] [flags of python -m wsfvit.detection train]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/launch.sh
train_detector configs/detection/mask_rcnn_wsfvit_t.yaml "$@"
