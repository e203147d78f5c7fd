"""Precision@1 over embeddings: the benchmark's figure, its chance level, and what a reader should know of the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.datasets import EvalRows

# Scores closer than this, relative to the vectors' lengths, are equal: about ten times what the order of a float32
# sum changes. Texts that differ only behind `max_len` are such a case.
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class DatasetScore:
    """One dataset's Precision@1.

    Attributes:
        acc: share of rows whose best candidate is the truth (index 0).
        chance: expected `acc` of a uniform guess, mean over the rows of 1 / number of candidates.
        num_correct: rows won; num_pred: rows.
        num_tied: rows lost only because another candidate scores the same as the truth (argmax would count them).
        num_duplicate_truth: rows whose truth stands again among the candidates; either of them is the truth.
    """

    acc: float
    num_correct: int
    num_pred: int
    chance: float
    num_tied: int
    num_duplicate_truth: int


def score_rows(vectors: npt.NDArray[np.float32], rows: EvalRows) -> tuple[DatasetScore, npt.NDArray[np.int64]]:
    """Scores one dataset.

    A row is won where the truth beats every other item; a tie is lost. A candidate equal to the truth (same text, same
    image path) is the truth: it neither beats it nor ties with it.

    Args:
        vectors: float32 (items, hidden); the score is the dot product.

    Returns:
        The score, and for each row the index (into the item table) of the chosen candidate; in a lost tie that is
        the other candidate.
    """
    chosen = np.empty(len(rows), dtype=np.int64)
    chances = np.empty(len(rows))
    num_tied = num_duplicate_truth = 0
    for row, candidates in enumerate(rows.candidates):
        query = vectors[rows.queries[row]]
        scores = vectors[candidates] @ query
        is_truth = candidates == candidates[0]
        chances[row] = is_truth.mean()
        num_duplicate_truth += int(is_truth.sum() > 1)
        chosen[row] = candidates[0]
        if is_truth.all():
            continue
        others = np.where(is_truth, -np.inf, scores)
        best = int(others.argmax())
        margin = float(scores[0] - others[best])
        tolerance = TIE_TOLERANCE * float(np.linalg.norm(query) * np.linalg.norm(vectors[candidates[0]]))
        if margin <= tolerance:
            chosen[row] = candidates[best]
            num_tied += int(margin >= -tolerance)
    num_correct = int(sum(chosen[row] == candidates[0] for row, candidates in enumerate(rows.candidates)))
    score = DatasetScore(
        acc=num_correct / len(rows),
        num_correct=num_correct,
        num_pred=len(rows),
        chance=float(chances.mean()),
        num_tied=num_tied,
        num_duplicate_truth=num_duplicate_truth,
    )
    return score, chosen
