#!/usr/bin/env bash
# Starts the ranks of one node without a launcher, as in kubernetes.yaml. Signals are passed to the ranks, which save and
# end with exit code 75. A rank that fails ends the other ranks of its node; the ranks of other nodes then end with an
# error too. Flags of vlm2vec.train may follow.
#
# NODES, NODE_RANK, GPUS        number of nodes, this node's number from 0, number of ranks per node
# MASTER_ADDR, MASTER_PORT      the first node, and a port there (default: 29500)
# GRACE                         seconds for other ranks to report their errors after one has failed (default: 10)
# MODEL, SHARDS, OUTPUT, RECIPE, ENGINE   see common.sh
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

require NODES "set it to the number of nodes"
require NODE_RANK "set it to this node's number, from 0"
require GPUS "set it to the number of ranks per node"
require MASTER_ADDR "set it to the name of the first node"
require_number NODES 1
require_number GPUS 1
require_number NODE_RANK
((10#$NODE_RANK < 10#$NODES)) || fail "NODE_RANK=$NODE_RANK: must be less than NODES=$NODES"
GRACE=${GRACE:-10}
require_number GRACE
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500} WORLD_SIZE=$((NODES * GPUS))

ranks=()
for ((local_rank = 0; local_rank < GPUS; local_rank++)); do
  RANK=$((NODE_RANK * GPUS + local_rank)) LOCAL_RANK=$local_rank LOCAL_WORLD_SIZE=$GPUS python -m "${TRAIN[@]}" "$@" &
  ranks+=($!)
done
for signal in TERM INT USR1; do
  # shellcheck disable=SC2064  # expand the signal's name now
  trap "kill -s $signal \${ranks[*]} 2> /dev/null || true" "$signal"
done

# `kill -0` instead of `wait -n`, which does not report a rank that has just ended.
result=0 deadline=0 running=("${ranks[@]}")
while ((${#running[@]})); do
  still=()
  for rank in "${running[@]}"; do
    if kill -0 "$rank" 2> /dev/null; then
      still+=("$rank")
      continue
    fi
    status=0
    wait "$rank" || status=$?
    # The first failure decides the exit code, except that bad input (2) wins, because it causes other errors.
    if ((status != 0 && (result == 0 || status == 2))); then result=$status; fi
    # Gives the others time to report their errors.
    if ((status != 0 && status != 75 && deadline == 0)); then deadline=$((SECONDS + GRACE)); fi
  done
  running=("${still[@]}")
  if ((deadline && SECONDS >= deadline && ${#running[@]})); then kill -s KILL "${running[@]}" 2> /dev/null || true; fi
  sleep 0.2 || true
done
exit "$result"
