#!/usr/bin/env bash
# Makes the environment and runs lint, types and the first tier of tests (minutes); arguments go to pytest.
# scripts/test.sh --all also runs the tests marked slow.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
show_help "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ensure_venv dev data

.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
# One file after the other in each process, because the tests of a file share what they trained.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
