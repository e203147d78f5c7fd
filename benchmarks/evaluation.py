"""Scoring the miniature: `eval.mmeb` beside the original's loop.

    python -m benchmarks.evaluation [--rounds 3]

The original's loop: each dataset's distinct queries, then its distinct candidates, in batches of 16 in the order of the
data, in one process that also decodes, encoded as benchmarks/original_encoder.py does it; nothing is read, ranked or
written. `eval.mmeb`: everything from its arguments to the written scores, in the same process. The rounds alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch

from benchmarks.original_encoder import OriginalEncoder, padded
from data_prep.mini_mmeb import EVAL_FOLDER, TRAIN_FOLDER, build_mini_mmeb
from data_prep.mini_model import build_mini_model
from eval import mmeb
from vlm2vec import VLM2Vec
from vlm2vec.batches import ItemEncoderInputs
from vlm2vec.batches.inputs import NamedItem
from vlm2vec.evaluation.datasets import EvalData, read_data
from vlm2vec.evaluation.items import ItemTable
from vlm2vec.evaluation.plan import item_text
from vlm2vec.shards import Item

ORIGINAL_BATCH = 16
NUM_CROPS = 4
MAX_LEN = 256


def speed(root: Path, rounds: int) -> None:
    """Prints what both ways cost, on the same model and data.

    CPU seconds count worker processes too and, unlike seconds, do not see what else the machine does.
    """
    with redirect_stdout(sys.stderr):
        dataset, model = build_miniature(root)
    data, _ = read_data(str(dataset), ["all"])
    images = dataset / "images"
    sides = [np.unique(side) for rows in data.datasets for side in (rows.queries, rows.candidates)]
    encoder = VLM2Vec.from_pretrained(model, num_crops=NUM_CROPS).eval()
    original = OriginalEncoder(encoder)
    inputs = ItemEncoderInputs(encoder.processor, MAX_LEN)
    command = ["--model_name", str(model), "--dataset_name", str(dataset), "--image_dir", str(images)]
    command += ["--num_crops", str(NUM_CROPS), "--max_len", str(MAX_LEN)]
    ways: dict[str, Callable[[int], object]] = {
        "the original's loop": lambda number: _original_loop(original, inputs, data, sides, images),
        "eval.mmeb": lambda number: mmeb.main([*command, "--encode_output_path", str(root / f"scores{number}")]),
    }
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, work in ways.items():
            costs[name].append(_cost(lambda work=work, number=number: work(number)))  # type: ignore[misc]
    items = sum(len(side) for side in sides)
    print(f"{items:,} items that the original encodes, {len(data.items):,} distinct ones.\n")
    print("| way | s | CPU s | items/s | of the original's | in CPU s |\n| --- | --- | --- | --- | --- | --- |")
    for name, measured in costs.items():
        ratios = [
            [their / our for their, our in zip(theirs, ours, strict=True)]
            for theirs, ours in zip(costs["the original's loop"], measured, strict=True)
        ]
        seconds, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
        ratio, cpu_ratio = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {items / seconds:.0f} | {ratio:.2f} | {cpu_ratio:.2f} |")


def build_miniature(root: Path) -> tuple[Path, Path]:
    """Builds the miniature and its untrained model; the folders of its evaluation data and of the model."""
    build_mini_mmeb(root / "mini", seed=0)
    build_mini_model(root / "mini" / TRAIN_FOLDER, root / "untrained", seed=0)
    return root / "mini" / EVAL_FOLDER, root / "untrained"


def _cost(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process and the workers that it started and ended."""
    start, before = time.perf_counter(), os.times()
    with redirect_stdout(sys.stderr):
        work()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def _original_loop(
    encode: OriginalEncoder, inputs: ItemEncoderInputs, data: EvalData, sides: Sequence[np.ndarray], image_dir: Path
) -> None:
    with torch.no_grad():
        for side in sides:
            for start in range(0, len(side), ORIGINAL_BATCH):
                named = [_read(data.items, int(index), image_dir) for index in side[start : start + ORIGINAL_BATCH]]
                (batch,) = padded([inputs.process(each) for each in named], ORIGINAL_BATCH, NUM_CROPS)
                encode(batch).numpy()


def _read(items: ItemTable, index: int, image_dir: Path) -> NamedItem:
    image = items.image(index)
    return NamedItem(Item(item_text(items, index), (image_dir / image).read_bytes() if image else None), image)


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
