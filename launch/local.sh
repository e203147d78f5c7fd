#!/usr/bin/env bash
# Trains on this machine: on all its GPUs, or on CPU ranks if it has none. Flags of vlm2vec.train may follow.
#
#   MODEL=microsoft/Phi-3.5-vision-instruct SHARDS=shards OUTPUT=runs/lora_1024 launch/local.sh --save_steps 100
#
# MODEL, SHARDS, OUTPUT   see common.sh; a second start with the same OUTPUT resumes the first
# RECIPE, ENGINE          default: launch/recipes/lora_1024.yaml, ds_configs/zero2.json
# GPUS                    number of ranks; default: the number of GPUs, or 2
# MASTER_PORT             the port on which ranks connect; default: a free port
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

choose_ranks GPUS
require_number GPUS 1
MASTER_PORT=${MASTER_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
require_number MASTER_PORT 1
# The launcher reports each of its steps otherwise, with the whole command line of every rank.
exec python -m deepspeed.launcher.runner --log_level error --num_gpus "$GPUS" --master_port "$MASTER_PORT" \
  --module "${TRAIN[@]}" "$@"
