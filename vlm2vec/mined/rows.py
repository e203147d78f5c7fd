"""Looks up a teacher's hard negatives, false negatives and scores for the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlm2vec.mined.format import Lists, MinedSubset

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RowNegatives:
    """Mined hard negatives of some rows, ordered by row, hardest first; shape (n,) each.

    Attributes:
        rows: Index of the row that each negative belongs to.
        subsets: Index of each negative's subset.
        positions: Position of the sample whose target is the negative.
        scores: The teacher's cosine of query and negative.
    """

    rows: Indices
    subsets: Indices
    positions: Indices
    scores: Scores


@dataclass(frozen=True)
class MinedRows:
    """The parts of a sidecar that a run uses. Rows are given by subset index and position, shape (rows,) each.

    Attributes:
        subsets: What was mined, in the order of the shards' subsets.
        negatives: Most hard negatives per row.
        false_negatives: Whether false negatives are masked.
        scores: Whether the loss uses the teacher's scores.
    """

    subsets: tuple[MinedSubset, ...]
    negatives: int = 0
    false_negatives: bool = False
    scores: bool = False

    def row_negatives(self, subsets: Indices, positions: Indices, damaged: Mapping[int, Set[int]]) -> RowNegatives:
        """The mined hard negatives of some rows; unreadable samples are replaced by the next ones of their list.

        Args:
            subsets: Subset index of each row.
            positions: Position of each row.
            damaged: Positions of unreadable samples, by the index of their subset.
        """
        found = []
        for subset, rows in _by_subset(subsets):
            mined = self.subsets[subset]
            which, places = _listed(mined.negatives, positions[rows])
            negatives = mined.negatives.values[places].astype(np.int64)
            readable = ~np.isin(negatives, [*damaged.get(subset, ())])
            which, places, negatives = which[readable], places[readable], negatives[readable]
            first = _ranks(which) < self.negatives
            of_subset = np.full(int(first.sum()), subset)
            found.append((rows[which[first]], of_subset, negatives[first], mined.negative_scores[places[first]]))
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        by_row = np.argsort(columns[0], kind="stable")
        return RowNegatives(*(column[by_row] for column in columns))

    def row_false_negatives(self, subsets: Indices, positions: Indices) -> tuple[Indices, Indices, Indices]:
        """The false negatives of some rows: row, subset index and position of each, shape (n,) each."""
        found = []
        for subset, rows in _by_subset(subsets):
            mined = self.subsets[subset]
            which, places = _listed(mined.false_negatives, positions[rows])
            found.append(
                (rows[which], np.full(len(which), subset), mined.false_negatives.values[places].astype(np.int64))
            )
        row, of_subset, false_negatives = (np.concatenate(column) for column in zip(*found, strict=True))
        return row, of_subset, false_negatives

    def positive_scores(self, subsets: Indices, positions: Indices) -> Scores:
        """The teacher's cosine of each row's query and target, shape (rows,)."""
        scores = np.empty(len(positions), np.float32)
        for subset, rows in _by_subset(subsets):
            scores[rows] = self.subsets[subset].positive_score[positions[rows]]
        return scores


def by_subset(names: Sequence[str], damaged: Set[tuple[str, int]]) -> dict[int, set[int]]:
    """Unreadable samples (subset, position) by the index of their subset."""
    found: dict[int, set[int]] = {}
    for name, position in damaged:
        found.setdefault(names.index(name), set()).add(position)
    return found


def _by_subset(subsets: Indices) -> list[tuple[int, Indices]]:
    return [(subset, np.flatnonzero(subsets == subset)) for subset in np.unique(subsets).tolist()]


def _listed(lists: Lists, positions: Indices) -> tuple[Indices, Indices]:
    """Entries of some rows' lists: index into `positions` and place among all entries, for each entry."""
    starts, counts = lists.offsets[positions], lists.offsets[positions + 1] - lists.offsets[positions]
    which = np.repeat(np.arange(len(positions)), counts)
    return which, starts[which] + _ranks(which)


def _ranks(groups: Indices) -> Indices:
    """Number of equal elements before each element of a sorted column."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups, side="left")
