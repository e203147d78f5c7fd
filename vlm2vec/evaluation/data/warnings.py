"""What a reader of the scores must know of the data: nothing that stops a run, everything that bends its figures."""

from __future__ import annotations

import numpy as np

from vlm2vec.evaluation.data.datasets import EvalRows
from vlm2vec.evaluation.data.items import Indices
from vlm2vec.evaluation.data.selection import listed
from vlm2vec.mmeb import MMEB, MMEB_EVAL_ROWS, Benchmark


def dataset_warnings(rows: EvalRows, position: Indices, benchmark: Benchmark | None) -> list[str]:
    """Warnings on one dataset, one line each, beginning with its name.

    Args:
        rows: the dataset.
        position: the number of the distinct item (same text, same image bytes) for every item of the table.
        benchmark: what it is scored as part of.
    """
    warnings = []
    if rows.unused_columns:
        warnings.append(f"columns not used: {', '.join(rows.unused_columns)}")
    counts = np.diff(rows.offsets)
    total = f"{len(rows):,} rows"
    if benchmark is not None and rows.name in listed(benchmark):
        if benchmark is MMEB and len(rows) != MMEB_EVAL_ROWS:
            warnings.append(f"{total}, where {benchmark.name} has {MMEB_EVAL_ROWS:,}")
        expected = benchmark.dataset(rows.name).num_candidates
        other = int((counts != expected).sum())
        if other:
            warnings.append(f"not {expected:,} candidates, as {benchmark.name} has, in {other:,} of {total}")
    truths = position[rows.candidates[rows.offsets[:-1]]]
    queries = position[rows.queries]
    if counts.max() > 1 and len(np.unique(truths)) == 1 and len(np.unique(queries)) > 1:
        warnings.append("all rows have the same first candidate, but the truth must stand first; is it somewhere else?")
    single = int((counts == 1).sum())
    if single:
        warnings.append(f"the truth is the only candidate, so that the row cannot be lost, in {single:,} of {total}")
    duplicates = sum(
        int((position[rows.of_row(row)] == truth).sum() > 1) for row, truth in enumerate(truths) if counts[row] > 1
    )
    if duplicates:
        warnings.append(f"the truth stands more than once, and any of them counts, in {duplicates:,} of {total}")
    return [f"{rows.name}: {warning}" for warning in warnings]
