"""Builds a miniature of MMEB in seconds and offline: real images, all four meta-tasks, the real on-disk layout.

    python -m data_prep.mini_mmeb OUT [--seed 0] [--scale 1.0]

It writes OUT/MMEB-train, OUT/MMEB-eval and OUT/visdoc. Train with `--dataset_name OUT/MMEB-train --image_dir
OUT/MMEB-train`, evaluate with `--dataset_name OUT/MMEB-eval --image_dir OUT/MMEB-eval/images`; OUT/visdoc is a
collection of drawn slides for `eval.retrieval`. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from data_prep.command_line import Parser
from data_prep.mini.slides import SLIDES, write_slides
from data_prep.mini.writer import SPLITS, write_eval_dataset, write_readme, write_train_subset
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.command_line import Parser as AnyParser
from vlm2vec.mmeb import MINI_MMEB

TRAIN_FOLDER, EVAL_FOLDER, VISDOC_FOLDER = "MMEB-train", "MMEB-eval", "visdoc"
_FOLDERS = (TRAIN_FOLDER, EVAL_FOLDER, VISDOC_FOLDER)


def build_mini_mmeb(output_dir: Path, seed: int = 0, scale: float = 1.0) -> dict[str, int]:
    """Builds the miniature. The folders get their final names only when they are complete.

    Args:
        output_dir: The folders MMEB-train, MMEB-eval and visdoc are written here; they must not exist yet.
        seed: The same seed gives the same bytes.
        scale: The number of rows of every subset and dataset, as a share of the full number.

    Returns:
        Rows by folder, e.g. {"MMEB-train/Photos": 1400, ...}.

    Raises:
        InputError: One of these folders exists.
    """
    for folder in _FOLDERS:
        if (output_dir / folder).exists():
            raise InputError(f"{output_dir / folder}: exists already; remove it or choose another folder")
    output_dir.mkdir(parents=True, exist_ok=True)
    unfinished = output_dir / f".tmp-{os.getpid()}"
    try:
        rows = _build(unfinished, seed, scale)
        for folder in _FOLDERS:
            os.replace(unfinished / folder, output_dir / folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return rows


def _build(root: Path, seed: int, scale: float) -> dict[str, int]:
    train_root, eval_root = root / TRAIN_FOLDER, root / EVAL_FOLDER
    rows: dict[str, int] = {}
    for subset in MINI_MMEB.train_subsets:
        rows[f"{TRAIN_FOLDER}/{subset.name}"] = write_train_subset(train_root, subset, scale, seed)
    for dataset in MINI_MMEB.eval_datasets:
        rows[f"{EVAL_FOLDER}/{dataset.name}"] = write_eval_dataset(eval_root, dataset, scale, seed)
    rows[f"{VISDOC_FOLDER}/{SLIDES}"] = write_slides(root / VISDOC_FOLDER / SLIDES, seed, scale)
    write_readme(train_root, "mini-MMEB-train", (subset.name for subset in MINI_MMEB.train_subsets), SPLITS)
    write_readme(eval_root, "mini-MMEB-eval", (dataset.name for dataset in MINI_MMEB.eval_datasets), ("test",))
    return rows


def _scale(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 100.0:
        raise argparse.ArgumentTypeError("must be above 0 and at most 100")
    return value


def parser() -> AnyParser:
    """The command line."""
    made = Parser(
        prog="python -m data_prep.mini_mmeb",
        description="Builds the miniature MMEB: synthetic training and evaluation data in MMEB's layout.",
        examples=("python -m data_prep.mini_mmeb demo/mini",),
    )
    made.add_argument("output_dir", type=Path, help="Folder for the folders MMEB-train, MMEB-eval and visdoc.")
    made.add_argument("--seed", type=int, default=0, help="Seed of the content; the same seed gives the same bytes.")
    made.add_argument("--scale", type=_scale, default=1.0, help="Number of rows, as a multiple of the full number.")
    return made


def main() -> None:
    """Parses the command line and builds."""
    arguments = parser().parse_args()
    rows = build_mini_mmeb(arguments.output_dir, arguments.seed, arguments.scale)
    for folder, count in rows.items():
        print(f"{folder:<32}{count:>7} rows")
    print(f"{arguments.output_dir}: {sum(rows.values()):,} rows")


if __name__ == "__main__":
    sys.exit(run_program(main))
