"""Figures from the truth's rank in every row, and how sure they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Beside Precision@1 ("acc", the benchmark's figure): names of `DatasetScore`'s fields.
METRICS = ("hit5", "hit10", "mrr", "ndcg10")
CONFIDENCE = 0.95
_RESAMPLES = 10_000
_SEED = 0


@dataclass(frozen=True)
class DatasetScore:
    """One dataset's figures.

    Attributes:
        acc: Precision@1, share of rows whose best candidate is the truth (index 0).
        num_correct: rows won; num_pred: rows.
        chance: expected `acc` of a uniform guess, mean over the rows of 1 / number of candidates.
        num_tied: rows where another candidate scores the same as the truth and none more: lost (argmax counts them).
        num_duplicate_truth: rows whose truth stands again among the candidates; either of them is the truth.
        hit5, hit10: share of rows whose truth is among the best 5 or 10.
        mrr: mean reciprocal rank of the truth.
        ndcg10: mean normalised discounted cumulative gain of the best 10; with one truth, 1 / log2(1 + rank).
    """

    acc: float
    num_correct: int
    num_pred: int
    chance: float
    num_tied: int
    num_duplicate_truth: int
    hit5: float
    hit10: float
    mrr: float
    ndcg10: float


def score_of_ranks(
    ranks: npt.NDArray[np.integer],
    chances: npt.NDArray[np.float64],
    tied: npt.NDArray[np.bool_],
    duplicate_truth: npt.NDArray[np.bool_],
) -> DatasetScore:
    """A dataset's figures from its rows: the truth's rank (1 = best), chance, whether tied or duplicated; each (n,)."""
    gains = np.where(ranks <= 10, 1.0 / np.log2(1.0 + ranks), 0.0)
    num_correct = int((ranks == 1).sum())
    return DatasetScore(
        acc=num_correct / len(ranks),
        num_correct=num_correct,
        num_pred=len(ranks),
        chance=float(chances.mean()),
        num_tied=int(tied.sum()),
        num_duplicate_truth=int(duplicate_truth.sum()),
        hit5=float((ranks <= 5).mean()),
        hit10=float((ranks <= 10).mean()),
        mrr=float((1.0 / ranks).mean()),
        ndcg10=float(gains.mean()),
    )


def bootstrap_interval(scores: Mapping[str, DatasetScore]) -> list[float]:
    """95 % percentile bootstrap interval of the unweighted mean of Precision@1 over datasets, [low, high].

    Rows are resampled within each dataset. A resample of n rows of which a share p is won has Binomial(n, p) rows won,
    so the bootstrap's distribution is drawn directly, without resampling rows. The seed is fixed and each dataset has a
    stream of its own (by its name), so that an interval does not depend on what else was scored.
    """
    total = np.zeros(_RESAMPLES)
    for name, score in scores.items():
        stream = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        generator = np.random.default_rng([_SEED, stream])
        total += generator.binomial(score.num_pred, score.acc, _RESAMPLES) / score.num_pred
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(total / len(scores), [tail, 1 - tail])
    return [float(low), float(high)]
