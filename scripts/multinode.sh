#!/usr/bin/env bash
# Starts one launcher on several machines over ssh; the first one is the meeting point.
#
#     bash scripts/multinode.sh "node0 node1" scripts/wsfvit_t_224_1k.sh /path/to/imagenet-1k 8 [flags of train.py]
#
# The repository and the data lie at the same paths on all of them, and ssh asks for no password. Variables: MASTER_ADDR
# (default: the first machine), MASTER_PORT (default 29500), REMOTE (default ssh: called as REMOTE HOST COMMAND).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 3 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
read -ra hosts <<< "$1"
shift

processes=()
trap 'kill "${processes[@]}" 2>/dev/null || true' INT TERM
for rank in "${!hosts[@]}"; do
    printf -v command 'cd %q && NNODES=%q NODE_RANK=%q MASTER_ADDR=%q MASTER_PORT=%q exec bash' \
        "$PWD" "${#hosts[@]}" "$rank" "${MASTER_ADDR:-${hosts[0]}}" "${MASTER_PORT:-29500}"
    printf -v arguments ' %q' "$@"
    "${REMOTE:-ssh}" "${hosts[$rank]}" "$command$arguments" &
    processes+=($!)
done

status=0
for rank in "${!hosts[@]}"; do
    wait "${processes[$rank]}" || { status=$?; echo "error: ${hosts[$rank]} ended with exit code $status" >&2; }
done
exit "$status"
