#!/usr/bin/env bash
# Tests and measures everything on a GPU, step by step, into results/gpu; arguments go to wsfvit.benchmarks.gpu.
# Stops after 9 minutes; run it again until nothing is left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
ensure_venv dev data bench

.venv/bin/python -m wsfvit.benchmarks.gpu "$@"
