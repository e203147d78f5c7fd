"""One global batch as items on ranks: identical items once, dealt by their cost."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vlm2vec.batches.replacement import GlobalBatch

QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"


class SampleIndex(Protocol):
    """The index columns of a set of shards (`vlm2vec.shards.ShardSet`)."""

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets."""

    def columns(self, subset: str) -> Mapping[str, npt.NDArray[np.generic]]:
        """The subset's index columns, one entry a sample."""


# Estimated tokens of an item from (characters of text, image width, image height); width 0 means no image.
ItemCost = Callable[[int, int, int], int]


@dataclass(frozen=True, slots=True)
class ItemReference:
    """Where one item of a global batch is read: a side of a sample."""

    subset: str
    position: int
    side: str


@dataclass(frozen=True)
class BatchLayout:
    """How one global batch lies on the ranks. All ranks compute the same from the index alone, without talking.

    Items are numbered rank by rank: rank r encodes `items[offset:offset + counts[r]]`.

    Attributes:
        items: Every distinct item of the batch, in that numbering.
        counts: The number of items of each rank.
        query: Number of each row's query item, shape (batch,), int64.
        positive: Number of each row's target item, shape (batch,), int64.
        negative: Number of each hard negative's item, in the order of rows, shape (hard negatives,), int64; None if
            hard negatives do not take part.
        negative_row: The row that each hard negative belongs to, shape (hard negatives,), int64.
        digest: A hash of step, items and numbering, positive and below 2^63.
    """

    items: tuple[ItemReference, ...]
    counts: tuple[int, ...]
    query: npt.NDArray[np.int64]
    positive: npt.NDArray[np.int64]
    negative: npt.NDArray[np.int64] | None
    negative_row: npt.NDArray[np.int64] | None
    digest: int

    def of_rank(self, rank: int) -> tuple[ItemReference, ...]:
        """The items that `rank` encodes."""
        start = sum(self.counts[:rank])
        return self.items[start : start + self.counts[rank]]

    def rows_of_rank(self, rank: int) -> range:
        """The rows of the global batch whose loss `rank` computes."""
        batch, ranks = len(self.query), len(self.counts)
        return range(rank * batch // ranks, (rank + 1) * batch // ranks)


def lay_out(
    batch: GlobalBatch, index: SampleIndex, item_cost: ItemCost, num_ranks: int, hard_negatives: bool = False
) -> BatchLayout:
    """Finds the distinct items of a global batch and deals them to the ranks.

    Args:
        batch: The samples.
        index: Their index columns.
        item_cost: Estimates an item's tokens.
        num_ranks: Ranks to deal to.
        hard_negatives: Whether the samples' hard negatives take part.
    """
    sides = [_side(batch, index, item_cost, QUERY), _side(batch, index, item_cost, POSITIVE)]
    if hard_negatives:
        sides.append(_side(batch, index, item_cost, NEGATIVE))
    hashes, costs = (
        np.concatenate(parts) for parts in zip(*((side.hashes, side.costs) for side in sides), strict=True)
    )
    _, first, item_of_entry = np.unique(hashes, return_index=True, return_inverse=True)
    # np.unique sorts by hash; order by first appearance keeps the numbering readable and independent of hash values.
    appearance = np.argsort(first, kind="stable")
    rank_items = deal(costs[first[appearance]], num_ranks)
    dealt = appearance[np.concatenate(rank_items)]
    numbering = np.empty(len(first), dtype=np.int64)
    numbering[dealt] = np.arange(len(first))
    query, positive, *negatives = np.split(numbering[item_of_entry], np.cumsum([len(side.rows) for side in sides])[:-1])
    negative, negative_row = (negatives[0], sides[-1].rows) if negatives else (None, None)
    digest = hashlib.blake2b(digest_size=8)
    for part in (np.int64(batch.step), hashes, *(side.rows for side in sides), query, positive, *negatives):
        digest.update(np.ascontiguousarray(part).tobytes())
    return BatchLayout(
        items=tuple(_references(batch, index, sides, first[dealt])),
        counts=tuple(len(own) for own in rank_items),
        query=query,
        positive=positive,
        negative=negative,
        negative_row=negative_row,
        digest=int.from_bytes(digest.digest(), "little") >> 1,
    )


def deal(costs: npt.NDArray[np.int64], num_ranks: int) -> list[npt.NDArray[np.int64]]:
    """Deals items to ranks so that the ranks' costs are about equal (longest processing time first).

    Every choice depends on the costs and the items' order only, so all ranks deal alike.

    Returns:
        For each rank the items it gets, dearest first.
    """
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    load = [(0, rank) for rank in range(num_ranks)]
    for item in np.argsort(-costs, kind="stable"):
        cost, rank = heapq.heappop(load)
        hands[rank].append(int(item))
        heapq.heappush(load, (cost + int(costs[item]), rank))
    return [np.array(hand, dtype=np.int64) for hand in hands]


@dataclass(frozen=True)
class _Side:
    """One side of the rows that have it: which rows, what their items are, what they cost; shape (entries,) each."""

    name: str
    rows: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.int64]
    costs: npt.NDArray[np.int64]


def _side(batch: GlobalBatch, index: SampleIndex, item_cost: ItemCost, side: str) -> _Side:
    names = [f"{side}_{name}" for name in ("hash", "text_length", "width", "height")]
    values = np.zeros((len(names), len(batch.positions)), dtype=np.int64)
    present = np.ones(len(batch.positions), dtype=np.bool_)
    for subset in np.unique(batch.subsets).tolist():
        members = np.flatnonzero(batch.subsets == subset)
        columns = index.columns(index.subsets[subset])
        positions = batch.positions[members]
        for value, name in zip(values, names, strict=True):
            value[members] = columns[name][positions]
        if side == NEGATIVE:
            present[members] = columns["has_negative"][positions]
    rows = np.flatnonzero(present)
    hashes, *sizes = values[:, rows]
    costs = [item_cost(*size) for size in zip(*(size.tolist() for size in sizes), strict=True)]
    return _Side(side, rows, hashes, np.array(costs, dtype=np.int64))


def _references(
    batch: GlobalBatch, index: SampleIndex, sides: Sequence[_Side], entries: npt.NDArray[np.int64]
) -> Iterator[ItemReference]:
    """Where some entries, counted over all sides, are read."""
    rows = np.concatenate([side.rows for side in sides])[entries]
    side_of_entry = np.repeat(np.arange(len(sides)), [len(side.rows) for side in sides])[entries]
    columns = (batch.subsets[rows].tolist(), batch.positions[rows].tolist(), side_of_entry.tolist())
    for subset, position, side in zip(*columns, strict=True):
        yield ItemReference(index.subsets[subset], position, sides[side].name)
