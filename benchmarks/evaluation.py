"""Scoring the miniature: `eval.mmeb` beside the original's loop.

    python -m benchmarks.evaluation

The original's loop: batches of 16 in the order of the data, in one process that also decodes; its cost an item is
measured on 60 batches spread over all the data. `eval.mmeb`: everything from its arguments to the written scores.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path

import numpy as np

from data_prep.mini_mmeb import EVAL_FOLDER, TRAIN_FOLDER, build_mini_mmeb
from data_prep.mini_model import build_mini_model
from eval import mmeb
from vlm2vec import VLM2Vec
from vlm2vec.evaluation.datasets import EvalData, read_data

ORIGINAL_BATCH = 16
_SAMPLED_BATCHES = 60


def speed(root: Path) -> None:
    """Prints what both ways cost, on the same model and data, one after the other.

    CPU seconds count worker processes too and, unlike seconds, do not see what else the machine does.
    """
    with redirect_stdout(sys.stderr):
        dataset, model = build_miniature(root)
    data, _ = read_data(str(dataset), ["all"])
    entries = sum(len(rows.queries) + len(rows.candidates) for rows in data.datasets)
    sets = sum(len(np.unique(rows.queries)) + len(np.unique(rows.candidates)) for rows in data.datasets)
    encoder = VLM2Vec.from_pretrained(model)
    plain = _cost(lambda: _original_loop(encoder, data, dataset / "images"))
    plain = [each / (_SAMPLED_BATCHES * ORIGINAL_BATCH) for each in plain]
    command = ["--model_name", str(model), "--dataset_name", str(dataset), "--image_dir", str(dataset / "images")]
    ours = _cost(lambda: mmeb.main([*command, "--encode_output_path", str(root / "scores")]))
    print("| what the original encodes | items | its loop: s, CPU s | eval.mmeb: s, CPU s | ratio: s, CPU s |")
    print("| --- | --- | --- | --- | --- |")
    for name, count in (("every query and candidate", entries), ("each once in a dataset and side", sets)):
        theirs = [each * count for each in plain]
        cells = " | ".join(f"{one:.0f}, {cpu:.0f}" for one, cpu in (theirs, ours))
        ratios = ", ".join(f"{their / our:.1f}" for their, our in zip(theirs, ours, strict=True))
        print(f"| {name} | {count:,} | {cells} | {ratios} |")


def build_miniature(root: Path) -> tuple[Path, Path]:
    """Builds the miniature and its untrained model; the folders of its evaluation data and of the model."""
    build_mini_mmeb(root / "mini", seed=0)
    build_mini_model(root / "mini" / TRAIN_FOLDER, root / "untrained", seed=0)
    return root / "mini" / EVAL_FOLDER, root / "untrained"


def _cost(work: Callable[[], object]) -> list[float]:
    """Seconds, and CPU seconds of this process and the workers that it started and ended."""
    start, before = time.perf_counter(), os.times()
    with redirect_stdout(sys.stderr):
        work()
    after = os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    return [time.perf_counter() - start, cpu]


def _original_loop(encoder: VLM2Vec, data: EvalData, image_dir: Path) -> None:
    """Batches of 16 in the order of the data, spread evenly over all queries and candidates."""
    items = data.items
    order = np.concatenate(list(chain.from_iterable((rows.queries, rows.candidates) for rows in data.datasets)))
    for start in np.linspace(0, len(order) - ORIGINAL_BATCH, _SAMPLED_BATCHES).astype(int):
        batch = order[start : start + ORIGINAL_BATCH]
        encoder.encode(
            texts=[items.text(index) for index in batch],
            images=[str(image_dir / items.image(index)) if items.image(index) else None for index in batch],
            batch_tokens=10**9,
            strict_original=True,
        )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder))
