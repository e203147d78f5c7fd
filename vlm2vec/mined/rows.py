"""What a teacher mined for the rows of a batch: hard negatives, false negatives, its scores."""

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
    """Mined hard negatives of some rows, in the order of rows, hardest first; shape (n,) each.

    Attributes:
        rows: Which of the rows asked for.
        subsets: Index of each negative's subset.
        positions: The sample whose target it is.
        scores: The teacher's cosine.
    """

    rows: Indices
    subsets: Indices
    positions: Indices
    scores: Scores


@dataclass(frozen=True)
class MinedRows:
    """What of a sidecar takes part in training. Rows are given by index of the subset and position, shape (rows,) each.

    Attributes:
        subsets: What was mined, in the order of the shards' subsets.
        negatives: At most so many negatives join a row.
        false_negatives: Whether false negatives are left out of a row's negatives.
        scores: Whether the teacher's scores go to the loss.
    """

    subsets: tuple[MinedSubset, ...]
    negatives: int = 0
    false_negatives: bool = False
    scores: bool = False

    def row_negatives(self, subsets: Indices, positions: Indices, damaged: Mapping[int, Set[int]]) -> RowNegatives:
        """The mined hard negatives of some rows; samples that cannot be read give way to the next of their list.

        Args:
            subsets: Of the rows.
            positions: Of the rows.
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
        """The false negatives of some rows: row, index of the subset and position of each, shape (n,) each."""
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
    """The entries of some rows' lists: which of `positions` each belongs to, and its place among all entries."""
    starts, counts = lists.offsets[positions], lists.offsets[positions + 1] - lists.offsets[positions]
    which = np.repeat(np.arange(len(positions)), counts)
    return which, starts[which] + _ranks(which)


def _ranks(groups: Indices) -> Indices:
    """For each element of a sorted column how many equal ones come before it."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups, side="left")
