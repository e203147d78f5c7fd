"""python -m vlm2vec.export CHECKPOINT OUT: from a checkpoint of ZeRO ranks to a Hugging Face folder."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from vlm2vec.errors import OneLineErrors, run_program
from vlm2vec.export.folder import DEFAULT_SHARD_SIZE, export
from vlm2vec.messages.old_names import EXPORT
from vlm2vec.training.checkpoints.writer import find_checkpoint

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    """Exports from the command line."""
    parser = OneLineErrors(old_names=EXPORT, prog="vlm2vec.export", description=__doc__, allow_abbrev=False)
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
    parser.add_argument("--scores", type=Path, help="folder that eval.mmeb wrote; its scores go into the model card")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare what checkpoint and folder make of a few items; holds both models",
    )
    options = parser.parse_args()
    disable_progress_bar()  # of loading, during the check; the writing of files has one
    warnings.filterwarnings("ignore", category=FutureWarning)  # between transformers, PEFT and torch
    warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path`")  # --base_model says so
    checkpoint = find_checkpoint(options.checkpoint)
    done, checked = export(
        checkpoint,
        options.output,
        DTYPES.get(options.dtype),
        options.merge_lora,
        max_shard_size=options.max_shard_size,
        base_model=options.base_model,
        scores=options.scores,
        check=options.check,
    )
    print(f"exported {checkpoint} to {options.output}: {done}")
    if checked is not None:
        print(checked)


if __name__ == "__main__":
    sys.exit(run_program(main))
