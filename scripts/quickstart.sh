#!/usr/bin/env bash
# Makes the environment, trains a small WSF-ViT on built-in images, validates it, prints the complexity table
# and leaves figures in the run directory: curves, class activation maps, the subbands that the stem sees.
# Arguments go to train.py (--epochs 1).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
show_help "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ensure_venv demo

# At 32x32 one thread does as much as several, and far more on a machine that is shared.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
run="quickstart-$(date +%Y%m%d-%H%M%S)"
.venv/bin/python train.py -c configs/digits/wsfvit_p0.yaml --output output --experiment "$run" "$@"
best="output/$run/model_best.pth.tar"
.venv/bin/python validate.py --dataset digits -j 1 --checkpoint "$best"
.venv/bin/python get_flops.py --all
.venv/bin/python -m wsfvit.plot "output/$run" --out "output/$run/curves.png"
.venv/bin/python cam_image.py --dataset digits --num-images 10 --checkpoint "$best" --subbands --out "output/$run/cam.png"
