"""Metrics of ranked lists under graded relevance, query by query, and how sure their means are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
Gain = Literal["linear", "exponential"]

CUTOFFS = (1, 5, 10)
NO_DOCUMENT = -1
# Standard deviations of a normal distribution around its mean that hold 95 %.
_DEVIATIONS = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Relevance:
    """Which documents of a corpus answer which query, and how well.

    Only grades above 0 are kept: a document that is judged as irrelevant counts like one that is not judged
    (trec_eval and MMEB-V2 do the same).

    Attributes:
        offsets: Query q has `documents[offsets[q]:offsets[q + 1]]`, int64 (queries + 1,).
        documents: Places in the corpus, each once a query, int64 (judgements,).
        grades: Their grades, above 0, float64 (judgements,).

    Raises:
        ValueError: The arrays do not fit together, a grade is not positive, or a document is there twice in a query.
    """

    offsets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    grades: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if len(self.documents) != len(self.grades) or not len(self.offsets):
            raise ValueError(f"{len(self.documents)} documents and {len(self.grades)} grades")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.documents) or (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets must rise from 0 to the number of judgements")
        if not (self.grades > 0).all() or not np.isfinite(self.grades).all():
            raise ValueError("grades must be positive and finite")
        pairs = np.stack([self.query_of_judgement, self.documents])
        if np.unique(pairs, axis=1).shape[1] != len(self.documents):
            raise ValueError("a document is judged twice for the same query")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Relevant documents of each query, int64 (queries,)."""
        return np.diff(self.offsets)

    @property
    def query_of_judgement(self) -> npt.NDArray[np.int64]:
        """The query of each judgement, int64 (judgements,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def grades_of(self, ranked: npt.NDArray[np.int64], corpus_size: int) -> Scores:
        """The grades of ranked documents, 0 = not relevant.

        Args:
            ranked: Places in the corpus, `NO_DOCUMENT` where a list is shorter, int64 (queries, depth).
            corpus_size: Documents of the corpus.

        Returns:
            float64 (queries, depth).
        """
        keys = self.query_of_judgement * corpus_size + self.documents
        order = np.argsort(keys)
        keys, grades = keys[order], self.grades[order]
        wanted = np.arange(len(self))[:, None] * corpus_size + ranked
        found = np.minimum(np.searchsorted(keys, wanted), max(0, len(keys) - 1))
        if not len(keys):
            return np.zeros(ranked.shape)
        return np.where((ranked != NO_DOCUMENT) & (keys[found] == wanted), grades[found], 0.0)

    def ideal(self, depth: int) -> Scores:
        """The grades of the best possible lists, float64 (queries, depth), 0 behind a query's last judgement."""
        order = np.lexsort((-self.grades, self.query_of_judgement))
        places = np.arange(len(self.documents)) - np.repeat(self.offsets[:-1], self.counts)
        best = np.zeros((len(self), depth))
        kept = places < depth
        best[self.query_of_judgement[kept], places[kept]] = self.grades[order][kept]
        return best


class RankedLists:
    """The best documents of every query, and their grades.

    Every metric is an array with one value a query, float64 (queries,); a query without a relevant document scores 0.

    Args:
        ranked: Places in the corpus, best first, `NO_DOCUMENT` where a list is shorter, int64 (queries, depth).
        relevance: Of the same queries.
        corpus_size: Documents of the corpus.

    Raises:
        ValueError: Lists and judgements are of different numbers of queries.
    """

    def __init__(self, ranked: npt.NDArray[np.int64], relevance: Relevance, corpus_size: int) -> None:
        if len(ranked) != len(relevance):
            raise ValueError(f"{len(ranked)} ranked lists for {len(relevance)} queries")
        self._relevance = relevance
        self._grades = relevance.grades_of(ranked, corpus_size)
        self._hits = self._grades > 0
        self._total = np.maximum(relevance.counts, 1)

    def ndcg(self, cutoff: int, gain: Gain = "linear") -> Scores:
        """Normalised discounted cumulative gain: gain / log2(1 + rank), over that of the best possible list.

        Args:
            cutoff: Documents of a list that count.
            gain: The grade itself (trec_eval, and the visual documents of MMEB-V2), or 2 ** grade - 1 (Burges et al.
                2005).
        """
        found, best = (_discounted(grades, cutoff, gain) for grades in (self._grades, self._relevance.ideal(cutoff)))
        result: Scores = np.zeros(len(found))
        np.divide(found, best, out=result, where=best > 0)
        return result

    def hit(self, cutoff: int) -> Scores:
        """1 where one of the first `cutoff` documents is relevant."""
        result: Scores = np.asarray(self._hits[:, :cutoff].any(axis=1), dtype=np.float64)
        return result

    def recall(self, cutoff: int) -> Scores:
        """Share of the relevant documents that are among the first `cutoff`."""
        result: Scores = self._hits[:, :cutoff].sum(axis=1) / self._total
        return result

    def precision(self, cutoff: int) -> Scores:
        """Share of the first `cutoff` documents that are relevant; missing ones are not."""
        result: Scores = self._hits[:, :cutoff].sum(axis=1) / cutoff
        return result

    def reciprocal_rank(self, cutoff: int) -> Scores:
        """1 / rank of the first relevant document, 0 if it is behind `cutoff`."""
        hits = self._hits[:, :cutoff]
        return np.where(hits.any(axis=1), 1.0 / (1.0 + hits.argmax(axis=1)), 0.0)

    def average_precision(self, cutoff: int, over: Literal["relevant", "reachable"] = "relevant") -> Scores:
        """Mean of the precision at every relevant document of the first `cutoff`.

        Args:
            cutoff: Documents of a list that count.
            over: Divide by the number of relevant documents (trec_eval's `map_cut`), or by the number that a list of
                this length can hold (the original's `map@k`).
        """
        hits = self._hits[:, :cutoff]
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        divisor = self._total if over == "relevant" else np.minimum(self._total, cutoff)
        result: Scores = (precision * hits).sum(axis=1) / divisor
        return result


def _discounted(grades: Scores, cutoff: int, gain: Gain) -> Scores:
    grades = grades[:, :cutoff]
    gains = grades if gain == "linear" else np.exp2(grades) - 1.0
    result: Scores = (gains / np.log2(2.0 + np.arange(grades.shape[1]))).sum(axis=1)
    return result


def mean_with_interval(values: Scores) -> tuple[float, tuple[float, float]]:
    """The mean of shares over queries and its 95 % interval, from their spread (normal approximation), within [0, 1].

    Args:
        values: One a query, float64 (queries,).

    Raises:
        ValueError: No query.
    """
    if not len(values):
        raise ValueError("no queries")
    mean = math.fsum(values) / len(values)
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.5
    half = _DEVIATIONS * spread / math.sqrt(len(values))
    return mean, (max(0.0, mean - half), min(1.0, mean + half))
