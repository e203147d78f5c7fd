"""Ranks the target among each row's candidates, from embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlm2vec.evaluation.data.datasets import EvalRows
from vlm2vec.evaluation.data.items import Indices, ItemTable
from vlm2vec.evaluation.metrics import DatasetScore, score_of_ranks

# Scores that differ by less than this, relative to the vectors' lengths, are tied. It is about ten times the effect of
# the order of a float32 sum. Texts that differ only after `max_len` tokens are such a case.
TIE_TOLERANCE = 1e-6
TOP = 5
# The columns of `predictions.parquet`.
PREDICTIONS_SCHEMA = pa.schema(
    {
        "dataset": pa.string(),
        **dict.fromkeys(("row", "rank", "num_candidates"), pa.int32()),
        "chance": pa.float64(),
        **dict.fromkeys(("tied", "duplicate_truth"), pa.bool_()),
        "truth_score": pa.float32(),
        **dict.fromkeys(("query_text", "query_image", "truth_text", "truth_image"), pa.large_string()),
        "top_index": pa.list_(pa.int32(), TOP),
        "top_score": pa.list_(pa.float32(), TOP),
        **dict.fromkeys(("top_text", "top_image"), pa.list_(pa.large_string(), TOP)),
    }
)


@dataclass(frozen=True)
class RowScores:
    """Results of ranking one dataset, by row.

    Attributes:
        ranks: Rank of the target, 1 = best, int32 (rows,).
        chances: Share of a row's candidates that are the target, float64 (rows,).
        tied: Whether a different candidate ties with the target and none scores higher, bool (rows,).
        duplicate_truth: Whether the target occurs among the candidates more than once, bool (rows,).
        truth_scores: Score of the target, float32 (rows,).
        top: The best candidates as places in the row's list (0 = the target), best first, int32 (rows, 5); -1 = none.
        top_scores: Their scores, float32 (rows, 5).
    """

    ranks: Indices
    chances: npt.NDArray[np.float64]
    tied: npt.NDArray[np.bool_]
    duplicate_truth: npt.NDArray[np.bool_]
    truth_scores: npt.NDArray[np.float32]
    top: Indices
    top_scores: npt.NDArray[np.float32]

    @classmethod
    def empty(cls, rows: int) -> RowScores:
        """Makes empty results, to be filled by row."""
        return cls(
            ranks=np.zeros(rows, dtype=np.int32),
            chances=np.zeros(rows),
            tied=np.zeros(rows, dtype=np.bool_),
            duplicate_truth=np.zeros(rows, dtype=np.bool_),
            truth_scores=np.zeros(rows, dtype=np.float32),
            top=np.full((rows, TOP), -1, dtype=np.int32),
            top_scores=np.full((rows, TOP), np.nan, dtype=np.float32),
        )

    def total(self) -> DatasetScore:
        """Metrics of the dataset."""
        return score_of_ranks(self.ranks, self.chances, self.tied, self.duplicate_truth)


def score_rows(
    vectors: npt.NDArray[np.float32], position: Indices, rows: EvalRows, strict_original: bool = False
) -> RowScores:
    """Ranks one dataset's candidates.

    The target's rank is 1 + the number of other candidates that score as high or higher: a tie does not count as
    correct. A candidate equal to the target (same text, same image bytes) counts as the target.

    Args:
        vectors: Vectors, float32 (encoded items, hidden), may be a memory map; the score is the dot product.
        position: Row of `vectors` for every item of the table.
        rows: The dataset.
        strict_original: Count ties as the original's argmax does: the target wins them, because it is first.
    """
    result = RowScores.empty(len(rows))
    vectors = np.asarray(vectors)  # without the overhead of a memory map's subclass for every row
    for row in range(len(rows)):
        places = position[rows.of_row(row)]
        query = vectors[position[rows.queries[row]]]
        scores = np.take(vectors, places, axis=0) @ query
        is_truth = places == places[0]
        truth = scores[0]
        tolerance = np.float32(TIE_TOLERANCE) * _norm(query) * _norm(vectors[places[0]])
        others = scores[~is_truth]
        num_others = len(others)
        at_least_tied = np.count_nonzero(others >= truth - tolerance)
        beaten_by = np.count_nonzero(others > truth) if strict_original else at_least_tied
        result.ranks[row] = 1 + beaten_by
        result.chances[row] = (len(places) - num_others) / len(places)
        result.tied[row] = at_least_tied > 0 and not np.count_nonzero(others > truth + tolerance)
        result.duplicate_truth[row] = len(places) - num_others > 1
        result.truth_scores[row] = truth
        # In a tie, other candidates are listed before the target, or after it with the original's counting.
        sort_by = np.where(is_truth, truth if strict_original else truth - tolerance, scores)
        best = np.lexsort((~is_truth if strict_original else is_truth, -sort_by))[:TOP]
        result.top[row, : len(best)] = best
        result.top_scores[row, : len(best)] = np.where(is_truth[best], truth, scores[best])
    return result


def _norm(vector: npt.NDArray[np.float32]) -> np.float32:
    """The same bits as `numpy.linalg.norm`, without its overhead for other kinds of arrays."""
    return np.sqrt(vector.dot(vector))  # type: ignore[no-any-return]


def predictions_table(rows: EvalRows, scores: RowScores, items: ItemTable) -> pa.Table:
    """A dataset's rows for `predictions.parquet`: ranks with texts and image paths."""
    num_rows = len(rows)
    entries = rows.offsets[:-1, None] + np.maximum(scores.top, 0)
    top = np.where(scores.top >= 0, rows.candidates[entries], -1).ravel()
    query_text, query_image = items.take(rows.queries)
    truth_text, truth_image = items.take(rows.candidates[rows.offsets[:-1]])
    return pa.table(
        {
            "dataset": pa.repeat(pa.scalar(rows.name), num_rows),
            "row": pa.array(np.arange(num_rows, dtype=np.int32)),
            "rank": pa.array(scores.ranks),
            "num_candidates": pa.array(np.diff(rows.offsets).astype(np.int32)),
            "chance": pa.array(scores.chances),
            "tied": pa.array(scores.tied),
            "duplicate_truth": pa.array(scores.duplicate_truth),
            "truth_score": pa.array(scores.truth_scores),
            "query_text": query_text,
            "query_image": query_image,
            "truth_text": truth_text,
            "truth_image": truth_image,
            "top_index": _lists(pa.array(scores.top.ravel(), mask=scores.top.ravel() < 0)),
            "top_score": _lists(pa.array(scores.top_scores.ravel(), mask=scores.top.ravel() < 0)),
            **{name: _lists(column) for name, column in zip(("top_text", "top_image"), items.take(top), strict=True)},
        },
        schema=PREDICTIONS_SCHEMA,
    )


def score_of_table(table: pa.Table) -> DatasetScore:
    """Metrics of a dataset from its part of the predictions."""
    columns = (table[name].to_numpy() for name in ("rank", "chance", "tied", "duplicate_truth"))
    return score_of_ranks(*columns)


def _lists(values: pa.Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values, TOP)
