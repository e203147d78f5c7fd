# shellcheck shell=bash
# What every launcher shares; sourced, with the repository's root as working directory. Sets TRAIN, the training
# program's words.

: "${MODEL:?set it to the base model: a folder, or microsoft/Phi-3.5-vision-instruct}"
: "${SHARDS:?set it to the folder of shards that data_prep.convert wrote}"
: "${OUTPUT:?set it to the folder of the run: checkpoints, log, TensorBoard}"
RECIPE=${RECIPE:-launch/recipes/lora_1024.yaml}
ENGINE=${ENGINE:-ds_configs/zero2.json}

require_file() {
  [[ -f $1 ]] || { echo "error: $1: no such file ($2)" >&2; exit 2; }
}
require_number() {
  [[ $2 =~ ^[0-9]+$ ]] || { echo "error: $1=$2: must be a whole number" >&2; exit 2; }
}
require_file "$RECIPE" "RECIPE names the YAML file with the run's flags"
require_file "$ENGINE" "ENGINE names the DeepSpeed settings"
require_file "$SHARDS/manifest.json" "SHARDS names a folder that data_prep.convert has finished"
command -v python > /dev/null || { echo "error: no python: put .venv/bin on the PATH (make install)" >&2; exit 2; }

# Ranks decode in loader processes of their own; more threads than cores make every rank wait for the others.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
# --resume auto: the same command starts a run and goes on with it.
# shellcheck disable=SC2034  # used where this is sourced
TRAIN=(vlm2vec.train --config "$RECIPE" --deepspeed "$ENGINE" --model_name "$MODEL" --dataset_name "$SHARDS"
  --output_dir "$OUTPUT" --resume auto)
