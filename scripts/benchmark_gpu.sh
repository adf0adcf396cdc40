#!/usr/bin/env bash
# Tests and measures everything on a GPU, step by step, into results/gpu; arguments go to benchmarks.gpu.
# Stops after 9 minutes; run it again until nothing is left.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
show_help "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ensure_venv dev data bench

.venv/bin/python -m benchmarks.gpu "$@"
