#!/usr/bin/env bash
# Runs the training program on one GPU, in about a minute, after `make demo`: the miniature in bfloat16 under ZeRO-2
# (killed and resumed), under ZeRO-3 and with a DoRA adapter. Each run is exported, compared with its checkpoint, and used
# to encode. "exact" runs only if it is named: a run with --deterministic that is killed and resumed, and an undisturbed
# one, whose last checkpoints are compared bit for bit. It makes EXACT_STEPS steps with a checkpoint every four steps.
#
#     benchmarks/gpu_demo.sh [zero2] [zero3] [dora] [exact]   writes demo.md and demo.txt below ${OUT:-gpu_out}
#
# DEMO_DIR=demo   the folder with untrained/ and shards/
# LIMIT=150       time limit of each run in seconds; the runs are concurrent
# STEPS=30        steps of each run, with a checkpoint every ten
# EXACT_STEPS=12  steps of "exact"
# DS_ACCELERATOR=cpu   the same on a CPU rank
# PYTHON, WHEELS, SITE: see gpu_env.sh
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
demo=${DEMO_DIR:-demo}
steps=${STEPS:-30}
save_steps=10
exact_steps=${EXACT_STEPS:-12}
limit=${LIMIT:-150}
runs=("$@")
if [ ${#runs[@]} -eq 0 ]; then runs=(zero2 zero3 dora); fi
if [ ! -e "$demo/shards/manifest.json" ] || [ ! -e "$demo/untrained/config.json" ]; then
  echo "gpu_demo.sh: $demo has no shards/ and untrained/: run make demo first, or set DEMO_DIR" >&2
  exit 2
fi
out=${OUT:-gpu_out}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck source=benchmarks/gpu_env.sh
source benchmarks/gpu_env.sh

say() { printf '| %s | %s | %s |\n' "$run" "$1" "$2" >>"$work/$run.md"; }

# train ENGINE FLAG...: in the background, in its own process group, into ${output:-$work/$run}; sets $trainer
train() {
  local engine=$1
  shift
  setsid "$python" -m deepspeed.launcher.runner --num_gpus 1 --master_port "$port" --module vlm2vec.train \
    --config launch/recipes/mini.yaml --deepspeed "ds_configs/$engine.json" --model_name "$demo/untrained" \
    --dataset_name "$demo/shards" --output_dir "${output:-$work/$run}" --global_batch_size 64 --max_steps "$steps" \
    --warmup_steps 5 --logging_steps 1 --save_steps "$save_steps" --bf16 --resume auto "$@" &
  trainer=$!
  echo "$trainer" >>"$work/pids"
}

# Kills a run by SIGKILL as soon as it has a checkpoint, and restarts it.
kill_and_resume() {
  while [ ! -e "$work/$run/latest" ] && kill -0 "$trainer" 2>/dev/null; do sleep 0.1; done
  sleep 0.5
  if ! kill -0 "$trainer" 2>/dev/null; then
    wait "$trainer" || return 1
    say "killed" "not, it was done before"
    return
  fi
  kill -KILL -- "-$trainer"
  wait "$trainer" 2>/dev/null
  sleep 1
  say "killed with SIGKILL" "after step $(tail -n 1 "$work/$run/log.jsonl" | grep -oE '"step": [0-9]+' | grep -oE '[0-9]+')"
  train "$@"
  wait "$trainer"
}

# One run from start to end.
whole() {
  local start=$SECONDS
  case $run in
    zero2) train zero2 && kill_and_resume zero2 ;;
    zero3) train zero3 && wait "$trainer" ;;
    exact)
      steps=$exact_steps save_steps=4
      output=$work/$run.undisturbed port=$((port + 50)) train zero2 --deterministic
      local undisturbed=$trainer
      train zero2 --deterministic && kill_and_resume zero2 --deterministic && wait "$undisturbed"
      ;;
    dora) train zero2 --lora --lora_r 8 --gradient_checkpointing && wait "$trainer" ;;
    *) echo "unknown run $run"; false ;;
  esac || return 1
  say trained "$steps steps, $((SECONDS - start)) s since the start"
  if [ "$run" = exact ]; then
    "$python" - "$work/$run.undisturbed" "$work/$run" <<'END' >"$work/$run.equal" || return 1
import sys
from pathlib import Path
from trials.rig.states import differences
first, second = (Path(folder) / (Path(folder) / "latest").read_text().strip() for folder in sys.argv[1:])
unequal = differences(first, second)
print(f"no: {len(unequal)} differ, such as {unequal[0]}" if unequal else "yes, bit for bit")
END
    say "equal to an undisturbed run" "$(tail -n 1 "$work/$run.equal")"
  fi
  "$python" - "$work/$run/log.jsonl" <<'END' >"$work/$run.loss" || return 1
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
losses = [line["loss"] for line in lines if "loss" in line]
assert all(loss == loss for loss in losses), losses
print(f"{losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} lines")
END
  say loss "$(cat "$work/$run.loss")"
  if [ "$run" = exact ]; then return; fi
  "$python" -m vlm2vec.export "$work/$run" "$work/$run.out" --check || return 1
  say "exported and compared" "$((SECONDS - start)) s"
  "$python" examples/encode.py --model_name "$work/$run.out" >"$work/$run.similar" || return 1
  cat "$work/$run.similar"
  say encoded "$(sed -n 2p "$work/$run.similar"), $((SECONDS - start)) s"
}

echo "| run | what | result |
| --- | --- | --- |" | tee -a "$out/demo.md"
started=()
port=29600
for run in "${runs[@]}"; do
  port=$((port + 1))
  (
    trap - EXIT
    whole >"$work/$run.txt" 2>&1 || { say FAILED "the end of what it said:"; touch "$work/$run.failed"; }
  ) &
  started+=($!)
done
while [ "$SECONDS" -lt "$limit" ] && [ -n "$(jobs -rp)" ]; do sleep 0.5; done
if [ -n "$(jobs -rp)" ]; then
  kill "${started[@]}" 2>/dev/null
  while read -r trainer; do kill -KILL -- "-$trainer" 2>/dev/null; done <"$work/pids"
fi
wait
failed=0
for run in "${runs[@]}"; do
  last=encoded
  if [ "$run" = exact ]; then last=loss; fi
  if [ ! -e "$work/$run.failed" ] && ! grep -q "| $last |" "$work/$run.md" 2>/dev/null; then
    say "NOT DONE" "ended after $limit s; the end of what it said:"
    touch "$work/$run.failed"
  fi
  cat "$work/$run.md" | tee -a "$out/demo.md"
  if [ -e "$work/$run.failed" ]; then
    failed=1
    tail -n 25 "$work/$run.txt" | cut -c -200 | sed 's/^/    /' | tee -a "$out/demo.md"
  fi
  { echo "== $run"; tail -c 200000 "$work/$run.txt"; } >>"$out/demo.txt"
done
exit "$failed"
