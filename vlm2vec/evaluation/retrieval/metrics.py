"""Metrics of ranked lists with graded relevance, per query, and confidence intervals of their means."""

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
    """Relevance judgements: which documents of a corpus are relevant to which query, and their grades.

    Only grades above 0 are kept: a document judged irrelevant counts like one that is not judged, as in trec_eval and
    MMEB-V2.

    Attributes:
        offsets: Query q has `documents[offsets[q]:offsets[q + 1]]`, int64 (queries + 1,).
        documents: Places in the corpus, each at most once per query, int64 (judgements,).
        grades: Their grades, above 0, float64 (judgements,).

    Raises:
        ValueError: The arrays do not match, a grade is not positive, or a document occurs twice in a query.
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
        """Grades of ranked documents; 0 means not relevant.

        Args:
            ranked: Places in the corpus, padded with `NO_DOCUMENT`, int64 (queries, depth).
            corpus_size: Number of documents in the corpus.

        Returns:
            The grades, float64 (queries, depth).
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
        """Grades of the ideal lists, float64 (queries, depth), with 0 after a query's last judgement."""
        order = np.lexsort((-self.grades, self.query_of_judgement))
        places = np.arange(len(self.documents)) - np.repeat(self.offsets[:-1], self.counts)
        best = np.zeros((len(self), depth))
        kept = places < depth
        best[self.query_of_judgement[kept], places[kept]] = self.grades[order][kept]
        return best


class RankedLists:
    """The best documents of every query, and their grades.

    Every metric is an array with one value per query, float64 (queries,); a query without a relevant document scores 0.

    Args:
        ranked: Places in the corpus, best first, padded with `NO_DOCUMENT`, int64 (queries, depth).
        relevance: Judgements of the same queries.
        corpus_size: Number of documents in the corpus.

    Raises:
        ValueError: Lists and judgements differ in their number of queries.
    """

    def __init__(self, ranked: npt.NDArray[np.int64], relevance: Relevance, corpus_size: int) -> None:
        if len(ranked) != len(relevance):
            raise ValueError(f"{len(ranked)} ranked lists for {len(relevance)} queries")
        self._relevance = relevance
        self._grades = relevance.grades_of(ranked, corpus_size)
        self._hits = self._grades > 0
        self._total = np.maximum(relevance.counts, 1)

    def ndcg(self, cutoff: int, gain: Gain = "linear") -> Scores:
        """Normalised discounted cumulative gain: sum of gain / log2(1 + rank), divided by that of the ideal list.

        Args:
            cutoff: Number of leading documents that count.
            gain: "linear": the grade (trec_eval, and the visual documents of MMEB-V2); "exponential": 2 ** grade - 1
                (Burges et al. 2005).
        """
        found, best = (_discounted(grades, cutoff, gain) for grades in (self._grades, self._relevance.ideal(cutoff)))
        result: Scores = np.zeros(len(found))
        np.divide(found, best, out=result, where=best > 0)
        return result

    def hit(self, cutoff: int) -> Scores:
        """1 if one of the first `cutoff` documents is relevant, else 0."""
        result: Scores = np.asarray(self._hits[:, :cutoff].any(axis=1), dtype=np.float64)
        return result

    def recall(self, cutoff: int) -> Scores:
        """Share of the relevant documents that are among the first `cutoff`."""
        result: Scores = self._hits[:, :cutoff].sum(axis=1) / self._total
        return result

    def precision(self, cutoff: int) -> Scores:
        """Share of the first `cutoff` documents that are relevant; missing documents count as irrelevant."""
        result: Scores = self._hits[:, :cutoff].sum(axis=1) / cutoff
        return result

    def reciprocal_rank(self, cutoff: int) -> Scores:
        """1 / rank of the first relevant document, 0 if its rank is above `cutoff`."""
        hits = self._hits[:, :cutoff]
        return np.where(hits.any(axis=1), 1.0 / (1.0 + hits.argmax(axis=1)), 0.0)

    def average_precision(self, cutoff: int, over: Literal["relevant", "reachable"] = "relevant") -> Scores:
        """Mean of the precision at every relevant document among the first `cutoff`.

        Args:
            cutoff: Number of leading documents that count.
            over: "relevant": divide by the number of relevant documents (trec_eval's `map_cut`); "reachable": by the
                number of them that fit into `cutoff` places (`map@k` of the original VLM2Vec).
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
    """Mean of a metric over queries and its 95 % interval (normal approximation), limited to [0, 1].

    Args:
        values: One value per query, float64 (queries,).

    Raises:
        ValueError: There is no query.
    """
    if not len(values):
        raise ValueError("no queries")
    mean = math.fsum(values) / len(values)
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.5
    half = _DEVIATIONS * spread / math.sqrt(len(values))
    return mean, (max(0.0, mean - half), min(1.0, mean + half))
