#!/usr/bin/env bash
# The whole way on a miniature of the benchmark: data, shards, training, export, scores before and after.
# Runs on 2 CPU ranks, or on all GPUs of the machine.
#
# FAMILY     the model family; phi3_v if not set. python -m data_prep.mini_model --help lists the others
# DEMO_DIR   where everything is written; demo, in the repository, if not set, and demo-FAMILY for a family other than
#            phi3_v. What an earlier demo made there is made anew, other files stay; a folder with files that no demo
#            made is refused
# RANKS      as many as there are GPUs, or 2
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=launch/checks.sh
source launch/checks.sh

DEFAULT_FAMILY=phi3_v
FAMILY=${FAMILY:-$DEFAULT_FAMILY}
if [[ $FAMILY == "$DEFAULT_FAMILY" ]]; then
  DEMO_DIR=${DEMO_DIR:-demo}
else
  python -m data_prep.mini_model --family "$FAMILY" --help > /dev/null # an unknown family ends here
  DEMO_DIR=${DEMO_DIR:-demo-$FAMILY}
fi
expand_home DEMO_DIR
choose_ranks RANKS small
require_number RANKS 1
MINI=$DEMO_DIR/mini
TRAIN=$MINI/MMEB-train
EVAL=$MINI/MMEB-eval
started=$SECONDS

say() { printf '\n== %s  [%d s]\n' "$1" $((SECONDS - started)); }

# Only what a demo made is removed, and only in a folder that one made: it says so itself.
MARK=$DEMO_DIR/.made_by_demo
if [[ -e $DEMO_DIR && ! -e $MARK && (! -d $DEMO_DIR || -n $(ls -A -- "$DEMO_DIR")) ]]; then
  fail "$DEMO_DIR is not empty and was not made by the demo: move it away, or set DEMO_DIR to a folder of its own"
fi
mkdir -p -- "$DEMO_DIR"
touch -- "$MARK"
rm -rf -- "$MINI" "$DEMO_DIR"/{untrained,shards,run,trained} "$DEMO_DIR"/scores/{untrained,trained}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Ranks share the cores; more threads than cores make every rank wait for the others.
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / RANKS > 0 ? cores / RANKS : 1))}

say "1/7 Build the miniature benchmark from real images"
python -m data_prep.mini_mmeb "$MINI"

say "2/7 Make a small random-weight model ($FAMILY) with a tokenizer of its own"
python -m data_prep.mini_model --family "$FAMILY" --dataset_name "$TRAIN" --output_dir "$DEMO_DIR/untrained"

say "3/7 Convert to WebDataset shards"
python -m data_prep.convert --dataset_name "$TRAIN" --subset_name all --split_name original \
  --image_dir "$TRAIN" --output_dir "$DEMO_DIR/shards"

say "4/7 Score the untrained model"
python -m eval.mmeb --model_name "$DEMO_DIR/untrained" --dataset_name "$EVAL" --subset_name all \
  --image_dir "$EVAL/images" --encode_output_path "$DEMO_DIR/scores/untrained"

score_slides() { # with the texts of the subset that they come closest to
  python -m eval.retrieval --model_name "$DEMO_DIR/$1" --dataset_name "$MINI/visdoc" \
    --query_instruction $'Find an image that matches the given caption: {text}\n' \
    --document_instruction $'<|image_1|>\nRepresent the given image.\n' --encode_output_path "$DEMO_DIR/scores/$1/visdoc"
}
score_slides untrained

say "5/7 Train on $RANKS ranks (ZeRO-2, cached step, negatives of all ranks)"
echo "watch with: tensorboard --logdir $DEMO_DIR/run"
deepspeed --quiet --num_gpus "$RANKS" --module vlm2vec.train --deepspeed ds_configs/zero2.json \
  --config launch/recipes/mini.yaml --model_name "$DEMO_DIR/untrained" --dataset_name "$DEMO_DIR/shards" \
  --output_dir "$DEMO_DIR/run"

say "6/7 Export the ZeRO checkpoint to a Hugging Face folder and score it"
python -m vlm2vec.export "$DEMO_DIR/run" "$DEMO_DIR/trained" --check
python -m eval.mmeb --model_name "$DEMO_DIR/trained" --dataset_name "$EVAL" --subset_name all \
  --image_dir "$EVAL/images" --encode_output_path "$DEMO_DIR/scores/trained"
score_slides trained

say "7/7 Result"
python -m eval.report "$DEMO_DIR/scores/untrained" "$DEMO_DIR/scores/trained"
say "Done: the trained model is $DEMO_DIR/trained"
