# shellcheck shell=bash
# Common part of all launchers; to be sourced with the repository as working directory. Sets TRAIN, the arguments of the
# training program. Relative paths are relative to the repository.
# shellcheck source=launch/checks.sh
source launch/checks.sh

require MODEL "set it to the base model: a folder, or microsoft/Phi-3.5-vision-instruct"
require SHARDS "set it to the folder of shards that data_prep.convert wrote, or its URL"
require OUTPUT "set it to the folder of the run: checkpoints, log, TensorBoard"
RECIPE=${RECIPE:-launch/recipes/lora_1024.yaml}
ENGINE=${ENGINE:-ds_configs/zero2.json}
expand_home MODEL SHARDS OUTPUT RECIPE ENGINE
require_file "$RECIPE" "RECIPE names the YAML file with the run's flags"
require_file "$ENGINE" "ENGINE names the DeepSpeed settings"
is_url "$SHARDS" || require_file "$SHARDS/manifest.json" "SHARDS names a folder that data_prep.convert has finished"
! is_url "$OUTPUT" || fail "OUTPUT=$OUTPUT: must be a folder, shared by all nodes; checkpoints are not written to URLs"
if [[ -n ${MASTER_PORT:-} ]]; then require_number MASTER_PORT 1; fi
command -v python > /dev/null || fail "no python: put .venv/bin on the PATH (make install)"

# Ranks decode in separate loader processes; more threads than cores would make every rank wait for the others.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
# Lengths vary and kept graphs fill the memory; expandable segments fragment it less.
[[ -n ${PYTORCH_CUDA_ALLOC_CONF:-} ]] || export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
# --resume auto: the same command starts a run and resumes it.
# shellcheck disable=SC2034  # used where this is sourced
TRAIN=(vlm2vec.train --config "$RECIPE" --deepspeed "$ENGINE" --model_name "$MODEL" --dataset_name "$SHARDS"
  --output_dir "$OUTPUT" --resume auto)
