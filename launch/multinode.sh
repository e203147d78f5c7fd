#!/usr/bin/env bash
# Trains on several nodes with DeepSpeed's launcher. Code, .venv, MODEL, SHARDS and OUTPUT must have the same paths
# on every node (a shared file system). Flags of vlm2vec.train may follow.
#
# With ssh, from one node (needs pdsh there, and ssh to every node without a password):
#   HOSTFILE=hostfile MODEL=... SHARDS=... OUTPUT=... launch/multinode.sh
# Without ssh, on every node, with its number:
#   HOSTFILE=hostfile NODE_RANK=0 MODEL=... SHARDS=... OUTPUT=... launch/multinode.sh
#
# HOSTFILE                the nodes, see hostfile.example; ranks connect to the first one
# MODEL, SHARDS, OUTPUT   see common.sh; a second start with the same OUTPUT resumes the first
# RECIPE, ENGINE          default: launch/recipes/lora_1024.yaml, ds_configs/zero2.json
# NODE_RANK               this node's number, from 0; if not set, ssh starts the other nodes
# MASTER_ADDR             the first node's address; default: that of its name in HOSTFILE
# MASTER_PORT             a port on the first node; default: 29500
# NETWORK_INTERFACE       the interface to the other nodes, such as eth0; if not set, NCCL and gloo choose one
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

require HOSTFILE "set it to the list of nodes, see launch/hostfile.example"
expand_home HOSTFILE
require_file "$HOSTFILE" "HOSTFILE lists the nodes, see launch/hostfile.example"
MASTER_PORT=${MASTER_PORT:-29500}
check=(python -m vlm2vec.doctor.hostfile "$HOSTFILE" --master_port "$MASTER_PORT" --master_addr "${MASTER_ADDR:-}")
if [[ -n ${NODE_RANK:-} ]]; then
  require_number NODE_RANK
  check+=(--node_rank "$NODE_RANK")
fi
# Fails at once, not after 30 minutes, if a name has no address, the port is in use, or a node does not answer.
MASTER_ADDR=$("${check[@]}")
launcher=(python -m deepspeed.launcher.runner --hostfile "$HOSTFILE" --master_addr "$MASTER_ADDR"
  --master_port "$MASTER_PORT")

if [[ -n ${NETWORK_INTERFACE:-} ]]; then
  export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE GLOO_SOCKET_IFNAME=$NETWORK_INTERFACE
fi
if [[ -n ${NODE_RANK:-} ]]; then
  exec "${launcher[@]}" --no_ssh --node_rank "$NODE_RANK" --module "${TRAIN[@]}" "$@"
fi
command -v pdsh > /dev/null || fail "no pdsh: install it, or start every node with its NODE_RANK"
# DeepSpeed's pdsh launcher passes arguments to the nodes' shells without quoting, except that it quotes blanks, but
# not in its own paths.
[[ $PWD != *[[:space:]]* ]] || fail "$PWD: DeepSpeed's pdsh launcher takes no blank in it; start every node with its NODE_RANK"
for word in "${TRAIN[@]}" "$@"; do
  [[ $word =~ ^[][[:alnum:]_@%+=:,./\ -]*$ ]] ||
    fail "$word: DeepSpeed's pdsh launcher cannot pass it on; start every node with its NODE_RANK"
done
# Environment variables for the ranks of the other nodes; DeepSpeed's launcher reads them from a file.
mkdir -p -- "$OUTPUT" || fail "OUTPUT=$OUTPUT: cannot be created"
DS_ENV_FILE=$(cd "$OUTPUT" && pwd)/.deepspeed_env
export DS_ENV_FILE
for name in OMP_NUM_THREADS TOKENIZERS_PARALLELISM PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF HF_HOME HF_HUB_OFFLINE \
  DS_ACCELERATOR NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME NCCL_DEBUG; do
  [[ -z ${!name:-} ]] || echo "$name=${!name}"
done > "$DS_ENV_FILE"
exec "${launcher[@]}" --launcher pdsh --module "${TRAIN[@]}" "$@"
