#!/usr/bin/env bash
# bash scripts/video/simvp_wsfvit_200ep.sh /path/to/mnist [num_gpus] [flags of python -m wsfvit.video train]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/launch.sh
train_video configs/video/simvp_wsfvit_200ep.yaml "$@"
