"""python -m vlm2vec.export CHECKPOINT OUT: from a checkpoint of ZeRO ranks to a Hugging Face folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from vlm2vec.errors import OneLineErrors, run_program
from vlm2vec.export.folder import DEFAULT_SHARD_SIZE, export
from vlm2vec.training.checkpoint import find_checkpoint

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class _Parser(OneLineErrors, argparse.ArgumentParser):
    pass


def main() -> None:
    """Exports from the command line."""
    parser = _Parser(prog="vlm2vec.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run's folder (its latest checkpoint)")
    parser.add_argument("output", type=Path, help="folder to make; must not exist, or be empty")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights; the run's compute dtype if not given")
    parser.add_argument("--merge_lora", action="store_true", help="add the adapter to its base's weights")
    parser.add_argument(
        "--max_shard_size",
        default=DEFAULT_SHARD_SIZE,
        help=f"largest weight file, {DEFAULT_SHARD_SIZE} if not given; memory stays below three times this",
    )
    parser.add_argument("--base_model", help="the run's base model, if it is not where the run had it")
    options = parser.parse_args()
    checkpoint = find_checkpoint(options.checkpoint)
    done = export(
        checkpoint,
        options.output,
        DTYPES.get(options.dtype),
        options.merge_lora,
        max_shard_size=options.max_shard_size,
        base_model=options.base_model,
    )
    kind = "adapter" if done.is_adapter else "model with lm_head" if done.has_lm_head else "model without lm_head"
    size = f"{done.num_bytes / 1e9:.2f} GB, {str(done.dtype).removeprefix('torch.')}"
    print(f"exported {checkpoint} to {options.output}: {kind}, {size}")


if __name__ == "__main__":
    sys.exit(run_program(main))
