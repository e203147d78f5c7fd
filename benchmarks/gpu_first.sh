#!/usr/bin/env bash
# The first eight minutes on a GPU: every table of benchmarks/gpu, in one go, from a checkout and without a network.
#
#     benchmarks/gpu_first.sh            writes tables.md, rows.jsonl and the logs below ${OUT:-gpu_out}
#     benchmarks/gpu_first.sh --tiny     the same with a model of a few thousand weights on the CPU
#
# PYTHON=...  the interpreter; if not given, the first of .venv/bin/python, python3 and python whose torch has CUDA
# WHEELS=DIR  wheels of packages that the machine lacks; they are unpacked beside the output, nothing is installed
# LIMIT=480   seconds in all
#
# A part that fails, runs out of memory or out of its time loses nothing but itself: each is a process of its own, and
# every row is written as it comes.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-gpu_out}
limit=${LIMIT:-480}
tiny=()
if [ "${1:-}" = --tiny ]; then tiny=(--tiny); fi
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"

find_python() {
  local candidate
  for candidate in .venv/bin/python python3 python; do
    if "$candidate" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo python3
}

python=${PYTHON:-$(find_python)}
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$out/site" "$WHEELS"/*.whl || exit 1
  export PYTHONPATH="$out/site:$PYTHONPATH"
fi

# What ran, for whoever reads the tables.
{
  date -u
  nvidia-smi 2>&1 | head -20
  nvcc --version 2>&1 | tail -2
  "$python" - <<'END'
from importlib.metadata import distributions
wanted = ("torch", "deepspeed", "transformers", "peft", "triton", "nvidia-cudnn")
print(*sorted({f"{each.name} {each.version}" for each in distributions() if each.name.lower().startswith(wanted)}), sep="\n")
END
} >"$out/machine.txt"

# part NAME SECONDS SECTION...: rows start only while there is time for one more; then the process is ended.
part() {
  local name=$1 seconds=$2
  shift 2
  if [ $((limit - SECONDS)) -lt "$seconds" ]; then seconds=$((limit - SECONDS)); fi
  if [ "$seconds" -lt 20 ]; then
    echo "$name: not run, the time is over" | tee -a "$out/tables.md"
    return
  fi
  echo "== $name, at most $seconds s, after $SECONDS s"
  timeout --kill-after=10 "$seconds" "$python" -m benchmarks.gpu --sections "$@" --output "$out/rows.jsonl" \
    --pairs 24 --steps 1 --seconds $((seconds * 3 / 4)) --rank_seconds 30 ${tiny[@]+"${tiny[@]}"} \
    2>"$out/$name.log" | tee -a "$out/tables.md"
  case ${PIPESTATUS[0]} in
    0) ;;
    124 | 137) echo "$name: ended after $seconds s" | tee -a "$out/tables.md" ;;
    *) failed=1; echo "$name: see $out/$name.log" | tee -a "$out/tables.md" ;;
  esac
}

failed=0
if [ ${#tiny[@]} -gt 0 ]; then
  part all "$limit" ceilings exactness ranks lora full compiled
else
  part lora 220 ceilings lora
  part exactness 90 exactness ranks
  part full 80 full
  part compiled 120 compiled
fi
exit "$failed"
