"""Metrics from the target's rank in every row, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

# Fields of `DatasetScore` besides "acc" (Precision@1, the benchmark's metric).
METRICS = ("hit5", "hit10", "mrr", "ndcg10")
# Standard deviations of a normal distribution around its mean that hold 95 %.
_DEVIATIONS = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class DatasetScore:
    """Metrics of one dataset.

    Attributes:
        acc: Precision@1: share of rows whose best candidate is the target (index 0).
        num_correct: Rows whose best candidate is the target.
        num_pred: All rows.
        chance: Expected `acc` of a uniform guess: mean over the rows of 1 / number of candidates.
        num_tied: Rows where a different candidate scores the same as the target and none scores more. They count as not
            correct (argmax would count them as correct).
        num_duplicate_truth: Rows whose target occurs several times among the candidates; any of them counts.
        hit5, hit10: Share of rows whose target is among the best 5 or 10.
        mrr: Mean reciprocal rank of the target.
        ndcg10: Mean normalised discounted cumulative gain of the best 10; with one target, 1 / log2(1 + rank).
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
    """Metrics of a dataset from its rows: the target's rank (1 = best), chance, tied, duplicated; each (rows,)."""
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


def interval_of_mean(scores: Mapping[str, DatasetScore]) -> list[float]:
    """95 % interval of the unweighted mean of Precision@1 over datasets, [low, high].

    A dataset's interval is Wilson's for a proportion (Wilson 1927), which has a width also if all rows or none are
    correct. The datasets' intervals are combined by the MOVER method (Zou and Donner 2008): `low = mean - sqrt(sum
    (share_i - low_i)^2) / n`, and `high` likewise.
    """
    mean = math.fsum(score.acc for score in scores.values()) / len(scores)
    below = above = 0.0
    for score in scores.values():
        low, high = _wilson(score.acc, score.num_pred)
        below += (score.acc - low) ** 2
        above += (high - score.acc) ** 2
    return [max(0.0, mean - math.sqrt(below) / len(scores)), min(1.0, mean + math.sqrt(above) / len(scores))]


def _wilson(share: float, rows: int) -> tuple[float, float]:
    spread = _DEVIATIONS**2 / rows
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return middle - half, middle + half
