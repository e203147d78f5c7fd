#!/usr/bin/env bash
# The first eight minutes on a GPU: measures every table of benchmarks/gpu, from a checkout and without network access.
#
#     benchmarks/gpu_first.sh                              all parts; writes tables.md, rows.jsonl, log.txt and
#                                                          machine.txt below ${OUT:-gpu_out}
#     benchmarks/gpu_first.sh ceilings+exactness:60 compiled.dora_large,dora_kept+full:150
#                                                          these tables, or rows of tables, in this order; each part is
#                                                          a process with a time limit in seconds; + joins tables
#     benchmarks/gpu_first.sh --tiny [PART...]             the same with a model of a few thousand weights on the CPU
#
# LIMIT=480   total time limit in seconds
# PAIRS=24    pairs per step
# FAMILY      the model family; default: phi3_v
# PYTHON, WHEELS, SITE: see gpu_env.sh
#
# A part that fails, runs out of memory or exceeds its time does not affect the others: each is a separate process, and
# every row is written at once. tables.md has the end of a failed part's output, and log.txt all of it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-gpu_out}
limit=${LIMIT:-480}
pairs=${PAIRS:-24}
family=${FAMILY:-phi3_v}
tiny=()
rank_seconds=40
if [ "${1:-}" = --tiny ]; then
  tiny=(--tiny)
  rank_seconds=$limit # a CPU may have other load
  export OMP_NUM_THREADS=1
  shift
fi
parts=("$@")
if [ ${#parts[@]} -eq 0 ]; then
  parts=(ceilings+compiled:200 exactness+ranks:90 full+steps+encode:120 lora:120)
  if [ ${#tiny[@]} -gt 0 ]; then parts=("ceilings+exactness+ranks+lora+compiled+full+steps+encode:$limit"); fi
fi
for each in "${parts[@]}"; do
  if ! [[ $each =~ ^[a-z]+(\.[a-z0-9_,]+)?(\+[a-z]+(\.[a-z0-9_,]+)?)*:[0-9]+$ ]]; then
    echo "gpu_first.sh: $each: expected TABLE[.ROW,...][+TABLE...]:SECONDS" >&2
    exit 2
  fi
done
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
# shellcheck source=benchmarks/gpu_env.sh
source benchmarks/gpu_env.sh

# Records what ran, for readers of the tables.
{
  date -u
  nvidia-smi 2>&1 | head -20
  nvcc --version 2>&1 | tail -2
  "$python" - <<'END'
from importlib.metadata import version
for name in ("torch", "deepspeed", "transformers", "peft", "triton", "numpy", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"):
    try:
        print(name, version(name))
    except ImportError:
        print(name, "is not there")
END
} >>"$out/machine.txt"

# part SECTION+SECTION SECONDS: no row starts when time is short, and the process is killed at the limit.
part() {
  local name=$1 seconds=$2 before code
  if [ $((limit - SECONDS)) -lt "$seconds" ]; then seconds=$((limit - SECONDS)); fi
  if [ "$seconds" -lt 20 ]; then
    echo "$name: not run, the time is over" | tee -a "$out/tables.md"
    return
  fi
  echo "== $name, at most $seconds s, after $SECONDS s" | tee -a "$out/log.txt"
  before=$(wc -l <"$out/log.txt")
  # shellcheck disable=SC2086  # one argument per table
  timeout --kill-after=10 "$seconds" "$python" -m benchmarks.gpu --sections ${name//+/ } --output "$out/rows.jsonl" \
    --family "$family" --pairs "$pairs" --steps 1 --seconds $((seconds * 3 / 4)) --rank_seconds "$rank_seconds" ${tiny[@]+"${tiny[@]}"} \
    2>>"$out/log.txt" | tee -a "$out/tables.md"
  code=${PIPESTATUS[0]}
  if [ "$code" -eq 0 ]; then return; fi
  local how="exit code $code"
  case $code in
    124 | 137) how="ended after $seconds s" ;;
    *) failed=1 ;;
  esac
  printf '\n%s: %s; the end of what it said:\n\n' "$name" "$how" | tee -a "$out/tables.md"
  tail -n "+$((before + 1))" "$out/log.txt" | tail -n 15 | cut -c -200 | sed 's/^/    /' | tee -a "$out/tables.md"
}

failed=0
for each in "${parts[@]}"; do part "${each%:*}" "${each#*:}"; done
exit "$failed"
