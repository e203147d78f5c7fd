"""Where the items of a global batch are read, what they are and what they cost, from the shards' index alone."""

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
    """The index of a set of shards (`vlm2vec.shards.ShardSet`)."""

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets."""

    def columns(self, subset: str) -> Mapping[str, npt.NDArray[Any]]:
        """The subset's index in memory (`vlm2vec.shards.columns`)."""


@dataclass(frozen=True, slots=True)
class ItemReference:
    """Where one item of a global batch is read.

    Attributes:
        subset, position: Of its sample.
        side: Of the sample.
        number: Which of the sample's hard negatives, from 0; 0 on the other sides.
    """

    subset: str
    position: int
    side: str
    number: int = 0


@dataclass(frozen=True)
class ItemPlaces:
    """Where some items are read, and the rows of the batch that they belong to; shape (items,) each.

    Attributes:
        side: Of their samples, the same for all.
        rows: The rows, counted from 0.
        subsets: Indices of the samples' subsets.
        positions: The samples' positions.
        numbers: Which hard negative each is, from 0; None: all 0.
    """

    side: str
    rows: Indices
    subsets: Indices
    positions: Indices
    numbers: Indices | None = None

    def by_subset(self, index: SampleIndex) -> Iterator[tuple[Indices, Mapping[str, npt.NDArray[Any]], Indices]]:
        """For each subset: which of these items it has, its index, and their places among the side's items there."""
        for subset in np.unique(self.subsets).tolist():
            members = np.flatnonzero(self.subsets == subset)
            columns, items = index.columns(index.subsets[subset]), self.positions[members]
            if self.side == NEGATIVE:
                items = columns["negative_starts"][items].astype(np.int64)
                items = items if self.numbers is None else items + self.numbers[members]
            yield members, columns, items

    def hashes(self, index: SampleIndex) -> Indices:
        """The items' content hashes."""
        hashes = np.zeros(len(self.rows), dtype=np.int64)
        for members, columns, items in self.by_subset(index):
            hashes[members] = columns[f"{self.side}_hash"][items]
        return hashes

    def costs(self, index: SampleIndex, item_cost: ItemCost) -> Indices:
        """The items' estimated tokens."""
        costs = np.zeros(len(self.rows), dtype=np.int64)
        for members, columns, items in self.by_subset(index):
            lengths = columns[f"{self.side}_text_length"][items].tolist()
            sizes = image_sizes(columns, self.side, items)
            costs[members] = [item_cost(*each) for each in zip(lengths, sizes, strict=True)]
        return costs

    def references(self, index: SampleIndex) -> list[ItemReference]:
        """The items by name."""
        numbers = np.zeros_like(self.rows) if self.numbers is None else self.numbers
        columns = (self.subsets.tolist(), self.positions.tolist(), numbers.tolist())
        return [
            ItemReference(index.subsets[subset], position, self.side, number)
            for subset, position, number in zip(*columns, strict=True)
        ]


def negative_places(index: SampleIndex, subsets: Indices, positions: Indices) -> ItemPlaces:
    """All hard negatives of the samples of some rows, in the order of rows."""
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
