"""Places, content hashes and costs of a global batch's items, from the shards' index alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vlm2vec.shards.columns import image_sizes, places

QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"

Indices = npt.NDArray[np.int64]
# Estimated tokens of an item from the characters of its text and (width, height) of each image.
ItemCost = Callable[[int, Sequence[tuple[int, int]]], int]


class SampleIndex(Protocol):
    """Interface to the index of a set of shards (`vlm2vec.shards.ShardSet`)."""

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets."""

    def columns(self, subset: str) -> Mapping[str, npt.NDArray[Any]]:
        """The subset's index in memory (`vlm2vec.shards.columns`)."""


@dataclass(frozen=True, slots=True)
class ItemReference:
    """Place in the shards of one item of a global batch.

    Attributes:
        subset, position: Subset and position of its sample.
        side: Side of the sample.
        number: Number of the hard negative in the sample, from 0; 0 for the other sides.
    """

    subset: str
    position: int
    side: str
    number: int = 0


@dataclass(frozen=True)
class ItemPlaces:
    """Places of some items in the shards, and their rows in the batch; shape (items,) each.

    Attributes:
        side: Side of the samples, the same for all items.
        rows: Rows in the batch, counted from 0.
        subsets: Indices of the samples' subsets.
        positions: Positions of the samples.
        numbers: Number of each hard negative in its sample, from 0; None: all 0.
    """

    side: str
    rows: Indices
    subsets: Indices
    positions: Indices
    numbers: Indices | None = None

    def by_subset(self, index: SampleIndex) -> Iterator[tuple[Indices, Mapping[str, npt.NDArray[Any]], Indices]]:
        """For each subset: indices of its items, its columns, and the items' places among the side's items there."""
        for subset in np.unique(self.subsets).tolist():
            members = np.flatnonzero(self.subsets == subset)
            columns, items = index.columns(index.subsets[subset]), self.positions[members]
            if self.side == NEGATIVE:
                items = columns["negative_starts"][items].astype(np.int64)
                items = items if self.numbers is None else items + self.numbers[members]
            yield members, columns, items

    def hashes(self, index: SampleIndex) -> Indices:
        """Content hashes of the items."""
        hashes = np.zeros(len(self.rows), dtype=np.int64)
        for members, columns, items in self.by_subset(index):
            hashes[members] = columns[f"{self.side}_hash"][items]
        return hashes

    def costs(self, index: SampleIndex, item_cost: ItemCost) -> Indices:
        """Estimated tokens of the items."""
        costs = np.zeros(len(self.rows), dtype=np.int64)
        for members, columns, items in self.by_subset(index):
            lengths = columns[f"{self.side}_text_length"][items].tolist()
            sizes = image_sizes(columns, self.side, items)
            costs[members] = [item_cost(*each) for each in zip(lengths, sizes, strict=True)]
        return costs

    def references(self, index: SampleIndex) -> list[ItemReference]:
        """References to the items."""
        numbers = np.zeros_like(self.rows) if self.numbers is None else self.numbers
        columns = (self.subsets.tolist(), self.positions.tolist(), numbers.tolist())
        return [
            ItemReference(index.subsets[subset], position, self.side, number)
            for subset, position, number in zip(*columns, strict=True)
        ]


def negative_places(index: SampleIndex, subsets: Indices, positions: Indices) -> ItemPlaces:
    """All hard negatives of the samples of some rows, ordered by row."""
    rows, numbers = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for subset in np.unique(subsets).tolist():
        members = np.flatnonzero(subsets == subset)
        starts = index.columns(index.subsets[subset])["negative_starts"]
        which, items = places(starts, positions[members])
        rows.append(members[which])
        numbers.append(items - starts[positions[members]][which])
    row, number = np.concatenate(rows), np.concatenate(numbers)
    by_row = np.argsort(row, kind="stable")
    row, number = row[by_row], number[by_row]
    return ItemPlaces(NEGATIVE, row, subsets[row], positions[row], number)
