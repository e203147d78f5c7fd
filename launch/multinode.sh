#!/usr/bin/env bash
# Trains on several nodes through DeepSpeed's launcher. Code, .venv, MODEL, SHARDS and OUTPUT must have the same paths
# on every node (a shared file system). Flags of vlm2vec.train may follow.
#
# With ssh, from one node (needs pdsh there, and ssh to every node without a password):
#   HOSTFILE=hostfile MODEL=... SHARDS=... OUTPUT=... launch/multinode.sh
# Without ssh, on every node, with its number:
#   HOSTFILE=hostfile NODE_RANK=0 MODEL=... SHARDS=... OUTPUT=... launch/multinode.sh
#
# HOSTFILE                the nodes, see hostfile.example; the first one is the master
# MODEL, SHARDS, OUTPUT   see common.sh; a second start with the same OUTPUT goes on where the first one ended
# RECIPE, ENGINE          launch/recipes/lora_1024.yaml, ds_configs/zero2.json
# NODE_RANK               this node's number from 0; where it is not set, ssh starts the other nodes
# MASTER_ADDR             the first node's name in HOSTFILE
# MASTER_PORT             29500
# NETWORK_INTERFACE       the interface that reaches the other nodes, such as eth0; NCCL and gloo guess if not set
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

: "${HOSTFILE:?set it to the list of nodes, see launch/hostfile.example}"
require_file "$HOSTFILE" "HOSTFILE lists the nodes, see launch/hostfile.example"
MASTER_ADDR=${MASTER_ADDR:-$(awk '!/^[[:space:]]*(#|$)/ {print $1; exit}' "$HOSTFILE")}
: "${MASTER_ADDR:?no node in HOSTFILE}"
launcher=(python -m deepspeed.launcher.runner --hostfile "$HOSTFILE" --master_addr "$MASTER_ADDR"
  --master_port "${MASTER_PORT:-29500}")

if [[ -n ${NETWORK_INTERFACE:-} ]]; then
  export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE GLOO_SOCKET_IFNAME=$NETWORK_INTERFACE
fi
if [[ -n ${NODE_RANK:-} ]]; then
  require_number NODE_RANK "$NODE_RANK"
  exec "${launcher[@]}" --no_ssh --node_rank "$NODE_RANK" --module "${TRAIN[@]}" "$@"
fi
command -v pdsh > /dev/null || {
  echo "error: no pdsh: install it, or start every node with its NODE_RANK" >&2
  exit 2
}
# What the ranks of the other nodes are to find in their environment; DeepSpeed's launcher reads it from a file.
mkdir -p "$OUTPUT"
DS_ENV_FILE=$(cd "$OUTPUT" && pwd)/.deepspeed_env
export DS_ENV_FILE
for name in OMP_NUM_THREADS TOKENIZERS_PARALLELISM HF_HOME HF_HUB_OFFLINE DS_ACCELERATOR NCCL_SOCKET_IFNAME \
  GLOO_SOCKET_IFNAME NCCL_DEBUG; do
  [[ -z ${!name:-} ]] || echo "$name=${!name}"
done > "$DS_ENV_FILE"
exec "${launcher[@]}" --launcher pdsh --module "${TRAIN[@]}" "$@"
