#!/usr/bin/env bash
# One node's ranks without a launcher, as in kubernetes.yaml: signals reach the ranks (they save and end with 75), and a
# rank that fails ends the others of its node; the other nodes' ranks end with an error of their own. Flags of
# vlm2vec.train may follow.
#
# NODES, NODE_RANK, GPUS        how many nodes, this one's number from 0, ranks of a node
# MASTER_ADDR, MASTER_PORT      the first node, and a port there (29500)
# GRACE                         seconds that ranks have to tell their errors when one has failed (10)
# MODEL, SHARDS, OUTPUT, RECIPE, ENGINE   see common.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

: "${NODES:?how many nodes}" "${NODE_RANK:?number of this node, from 0}" "${GPUS:?ranks of a node}"
: "${MASTER_ADDR:?name of the first node}"
for name in NODES NODE_RANK GPUS; do require_number "$name" "${!name}"; done
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500} WORLD_SIZE=$((NODES * GPUS))

ranks=()
for ((local_rank = 0; local_rank < GPUS; local_rank++)); do
  RANK=$((NODE_RANK * GPUS + local_rank)) LOCAL_RANK=$local_rank python -m "${TRAIN[@]}" "$@" &
  ranks+=($!)
done
for signal in TERM INT USR1; do
  # shellcheck disable=SC2064  # the signal's name is meant as it is now
  trap "kill -s $signal \${ranks[*]} 2> /dev/null || true" "$signal"
done

result=0
while mapfile -t running < <(jobs -rp) && ((${#running[@]})); do
  status=0
  wait -n "${running[@]}" || status=$?
  mapfile -t still < <(jobs -rp)
  # A signal ends the wait too; then no rank has ended.
  if ((${#still[@]} < ${#running[@]} && status != 0 && result == 0)); then
    result=$status
    if ((status != 75)); then
      sleep "${GRACE:-10}" # the others may have an error to tell
      kill -s KILL "${ranks[@]}" 2> /dev/null || true
    fi
  fi
done
exit "$result"
