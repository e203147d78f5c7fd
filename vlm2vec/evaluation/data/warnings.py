"""Warnings about evaluation data that make scores misleading without stopping a run."""

from __future__ import annotations

import numpy as np

from vlm2vec.evaluation.data.datasets import EvalRows
from vlm2vec.evaluation.data.items import Indices
from vlm2vec.evaluation.data.selection import listed
from vlm2vec.mmeb import MMEB, MMEB_EVAL_ROWS, Benchmark


def dataset_warnings(rows: EvalRows, position: Indices, benchmark: Benchmark | None) -> list[str]:
    """Warnings about one dataset, one line each, which start with its name.

    Args:
        rows: The dataset.
        position: Number of the distinct item (same text, same image bytes) for every item of the table.
        benchmark: The benchmark that it is scored as part of, if any.
    """
    warnings = []
    if rows.unused_columns:
        warnings.append(f"columns not used: {', '.join(rows.unused_columns)}")
    counts = np.diff(rows.offsets)
    total = f"{len(rows):,} rows"
    if benchmark is not None and rows.name in listed(benchmark):
        if benchmark is MMEB and len(rows) != MMEB_EVAL_ROWS:
            warnings.append(f"{total}, but {benchmark.name} has {MMEB_EVAL_ROWS:,}")
        expected = benchmark.dataset(rows.name).num_candidates
        other = int((counts != expected).sum())
        if other:
            warnings.append(f"{other:,} of {total} do not have {expected:,} candidates, as {benchmark.name} has")
    truths = position[rows.candidates[rows.offsets[:-1]]]
    queries = position[rows.queries]
    if counts.max() > 1 and len(np.unique(truths)) == 1 and len(np.unique(queries)) > 1:
        warnings.append(
            "all rows have the same first candidate; the first must be the row's target, is it at a different place?"
        )
    single = int((counts == 1).sum())
    if single:
        warnings.append(
            f"{single:,} of {total} have the target as only candidate, so that they always count as correct"
        )
    duplicates = sum(
        int((position[rows.of_row(row)] == truth).sum() > 1) for row, truth in enumerate(truths) if counts[row] > 1
    )
    if duplicates:
        warnings.append(
            f"{duplicates:,} of {total} have their target several times among the candidates; any of them counts"
        )
    return [f"{rows.name}: {warning}" for warning in warnings]
