#!/usr/bin/env bash
# Makes the environment, trains a small WSF-ViT on built-in images, validates it and prints the complexity table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
ensure_venv demo

# At 32x32 one thread does as much as several, and far more on a machine that is shared.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
run="quickstart-$(date +%Y%m%d-%H%M%S)"
.venv/bin/python train.py -c configs/digits/wsfvit_p0.yaml --output output --experiment "$run" "$@"
.venv/bin/python validate.py --dataset digits -j 1 --checkpoint "output/$run/model_best.pth.tar"
.venv/bin/python get_flops.py --all
