# shellcheck shell=bash
# Common part of gpu_first.sh and gpu_demo.sh, to be sourced in the repository: chooses $python, sets its environment.
#
# PYTHON=...  the interpreter; if not given, the first of .venv/bin/python, python3 and python whose torch has CUDA
# WHEELS=DIR  wheels of packages that the machine lacks; they are unpacked into $SITE, and nothing is installed
# SITE=...    default: ${TMPDIR:-/tmp}/vlm2vec_site. What an earlier call unpacked there is reused

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

export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
python=${PYTHON:-$(find_python)}
if [ -n "${WHEELS:-}" ]; then
  site=${SITE:-${TMPDIR:-/tmp}/vlm2vec_site}
  if [ ! -e "$site/.unpacked" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target "$site" "$WHEELS"/*.whl || exit 1
    touch "$site/.unpacked"
  fi
  PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
