"""One global batch as items on ranks: identical items once, dealt by their cost."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlm2vec.batches.replacement import GlobalBatch

QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"


class SampleIndex(Protocol):
    """The index columns of a set of shards (`vlm2vec.shards.ShardSet`)."""

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets."""

    def columns(self, subset: str) -> Mapping[str, NDArray[np.generic]]:
        """The subset's index columns, one entry a sample."""


# Estimated tokens of an item from (characters of text, image width, image height); width 0 means no image.
ItemCost = Callable[[int, int, int], int]


@dataclass(frozen=True)
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
        negative: Number of each row's hard negative, -1 where a row has none, shape (batch,), int64; None if hard
            negatives do not take part.
        digest: A hash of step, items and numbering, positive and below 2^63.
    """

    items: tuple[ItemReference, ...]
    counts: tuple[int, ...]
    query: NDArray[np.int64]
    positive: NDArray[np.int64]
    negative: NDArray[np.int64] | None
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
    sides = (QUERY, POSITIVE, NEGATIVE) if hard_negatives else (QUERY, POSITIVE)
    entries = [entry for side in sides for entry in _entries(batch, index, item_cost, side)]
    hashes = np.array([entry.content_hash for entry in entries], dtype=np.int64)
    costs = np.array([entry.cost for entry in entries], dtype=np.int64)
    _, first, item_of_entry = np.unique(hashes, return_index=True, return_inverse=True)
    # np.unique sorts by hash; order by first appearance keeps the numbering readable and independent of hash values.
    appearance = np.argsort(first, kind="stable")
    rank_items = deal(costs[first[appearance]], num_ranks)
    numbering = np.empty(len(first), dtype=np.int64)
    numbering[appearance[np.concatenate(rank_items)]] = np.arange(len(first))
    number_of = {side: np.full(len(batch.positions), -1, dtype=np.int64) for side in sides}
    for entry, item in zip(entries, item_of_entry, strict=True):
        number_of[entry.reference.side][entry.row] = numbering[item]
    digest = hashlib.blake2b(digest_size=8)
    for part in (np.int64(batch.step), hashes, *number_of.values()):
        digest.update(np.ascontiguousarray(part).tobytes())
    return BatchLayout(
        items=tuple(entries[first[appearance[item]]].reference for own in rank_items for item in own),
        counts=tuple(len(own) for own in rank_items),
        query=number_of[QUERY],
        positive=number_of[POSITIVE],
        negative=number_of.get(NEGATIVE),
        digest=int.from_bytes(digest.digest(), "little") >> 1,
    )


def deal(costs: NDArray[np.int64], num_ranks: int) -> list[NDArray[np.int64]]:
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
class _Entry:
    """One side of one row: where it is, what it is, what it costs."""

    row: int
    reference: ItemReference
    content_hash: int
    cost: int


def _entries(batch: GlobalBatch, index: SampleIndex, item_cost: ItemCost, side: str) -> Iterator[_Entry]:
    """A side of all rows of a batch; rows without a hard negative are left out there."""
    columns = {subset: index.columns(index.subsets[subset]) for subset in np.unique(batch.subsets)}
    for row, (subset, position) in enumerate(zip(batch.subsets, batch.positions, strict=True)):
        column = columns[subset]
        if side == NEGATIVE and not column["has_negative"][position]:
            continue
        length, width, height = (int(column[f"{side}_{name}"][position]) for name in ("text_length", "width", "height"))
        yield _Entry(
            row=row,
            reference=ItemReference(index.subsets[subset], int(position), side),
            content_hash=int(column[f"{side}_hash"][position]),
            cost=item_cost(length, width, height),
        )
