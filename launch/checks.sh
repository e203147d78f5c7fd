# shellcheck shell=bash
# Checks that all launchers use; to be sourced. An error is one line on stderr and exit code 2, as in the programs.

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}
# require NAME WHAT: the variable must be set.
require() {
  [[ -n ${!1:-} ]] || fail "$1 is not set: $2"
}
# require_number NAME [SMALLEST]: the variable must be a whole number.
require_number() {
  [[ ${!1} =~ ^[0-9]{1,9}$ ]] && ((10#${!1} >= ${2:-0})) || fail "$1=${!1}: must be a whole number, at least ${2:-0}"
}
# require_file PATH WHAT: the file must exist.
require_file() {
  local path=$1
  [[ $path == /* ]] || path=$PWD/$path
  [[ -f $path ]] || fail "$path: no such file ($2)"
}
is_url() {
  [[ $1 == *://* ]]
}
# expand_home NAME...: expands ~, which a shell does not expand between quotes and in files of variables.
expand_home() {
  local name home=~
  for name; do
    case ${!name:-} in
      "~" | "~/"*) printf -v "$name" '%s' "$home${!name:1}" ;;
    esac
  done
}
# choose_ranks NAME [small]: unless the variable is set, sets it to the number of GPUs, or to 2 on a CPU. Without a GPU it
# also sets DS_ACCELERATOR, because otherwise each of DeepSpeed's processes looks for a GPU and prints a warning. Work that
# is small runs on a CPU too where torch is built for CUDA, as pip installs it, but there is no driver.
choose_ranks() {
  [[ -z ${!1:-} ]] || return 0
  local found=cpu
  if [[ ${DS_ACCELERATOR:-} != cpu ]]; then
    found=$(python -c 'import sys, torch
from vlm2vec.device import on_cpu, unseen_gpu
unseen = unseen_gpu(needs_driver="small" in sys.argv)
print("cpu" if on_cpu() and unseen is None else torch.accelerator.device_count() or 2)' "${2:-}") ||
      fail "$1 is not set, and torch cannot say how many GPUs there are: run python -m vlm2vec.doctor"
  fi
  if [[ $found == cpu ]]; then
    export DS_ACCELERATOR=cpu
    found=2
  fi
  printf -v "$1" '%s' "$found"
}
