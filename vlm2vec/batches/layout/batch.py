"""Finds the distinct items of a global batch and distributes them to ranks by cost."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlm2vec.batches.layout.places import (
    POSITIVE,
    QUERY,
    ItemCost,
    ItemPlaces,
    ItemReference,
    SampleIndex,
    negative_places,
)
from vlm2vec.batches.replacement import GlobalBatch
from vlm2vec.mined.rows import MinedRows, by_subset


@dataclass(frozen=True)
class Teacher:
    """A teacher's data for a batch's rows; None for what the run does not use.

    Attributes:
        ignored: Row and item of each false negative in the batch, shape (couples, 2), int64.
        positive: The teacher's cosine of each row's query and target, shape (batch,), float32.
        negative: The teacher's cosine of each hard negative, NaN for those that it did not mine, shape (hard
            negatives,), float32; None also if the batch has no hard negatives.
    """

    ignored: npt.NDArray[np.int64] | None
    positive: npt.NDArray[np.float32] | None
    negative: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class BatchLayout:
    """Distribution of one global batch to ranks. All ranks compute the same from the index, without communication.

    Items are numbered rank by rank: rank r encodes `items[offset:offset + counts[r]]`.

    Attributes:
        items: Every distinct item of the batch, in that numbering.
        counts: Number of items of each rank.
        query: Number of each row's query item, shape (batch,), int64.
        positive: Number of each row's target item, shape (batch,), int64.
        negative: Number of each hard negative's item, ordered by row, a row's hard negatives from the data before its
            mined ones, shape (hard negatives,), int64; None without hard negatives.
        negative_row: Row of each hard negative, shape (hard negatives,), int64; None without hard negatives.
        teacher: A teacher's data for the rows; None without a teacher.
        digest: Hash of step, items and numbering, positive and below 2^63.
    """

    items: tuple[ItemReference, ...]
    counts: tuple[int, ...]
    query: npt.NDArray[np.int64]
    positive: npt.NDArray[np.int64]
    negative: npt.NDArray[np.int64] | None
    negative_row: npt.NDArray[np.int64] | None
    teacher: Teacher | None
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
    batch: GlobalBatch,
    index: SampleIndex,
    item_cost: ItemCost,
    num_ranks: int,
    hard_negatives: bool = False,
    mined: MinedRows | None = None,
    damaged: Set[tuple[str, int]] = frozenset(),
) -> BatchLayout:
    """Finds the distinct items of a global batch and distributes them to the ranks.

    Args:
        batch: The samples.
        index: Their index columns.
        item_cost: Estimates an item's tokens.
        num_ranks: Number of ranks.
        hard_negatives: Whether the samples' hard negatives are used.
        mined: The used parts of a teacher's sidecar; None without one.
        damaged: Unreadable samples (subset, position), which mined negatives leave out.
    """
    every_row = np.arange(len(batch.positions))
    sides = [ItemPlaces(side, every_row, batch.subsets, batch.positions) for side in (QUERY, POSITIVE)]
    if hard_negatives:
        sides.append(negative_places(index, batch.subsets, batch.positions))
    scores = [np.full(len(side.rows), np.nan, np.float32) for side in sides[2:]]
    if mined is not None and mined.negatives:
        found = mined.row_negatives(batch.subsets, batch.positions, by_subset(index.subsets, damaged))
        sides.append(ItemPlaces(POSITIVE, found.rows, found.subsets, found.positions))
        scores.append(found.scores)
    hashes = np.concatenate([side.hashes(index) for side in sides])
    costs = np.concatenate([side.costs(index, item_cost) for side in sides])
    distinct, first, item_of_entry = np.unique(hashes, return_index=True, return_inverse=True)
    # np.unique sorts by hash; ordering by first appearance makes the numbering readable and independent of hash values.
    appearance = np.argsort(first, kind="stable")
    rank_items = distribute(costs[first[appearance]], num_ranks)
    in_rank_order = appearance[np.concatenate(rank_items)]
    numbering = np.empty(len(first), dtype=np.int64)
    numbering[in_rank_order] = np.arange(len(first))
    rows = np.concatenate([side.rows for side in sides])
    query, positive, others = np.split(numbering[item_of_entry], [len(every_row), 2 * len(every_row)])
    by_row = np.argsort(rows[2 * len(every_row) :], kind="stable")
    negative, negative_row = others[by_row], rows[2 * len(every_row) :][by_row]
    teacher = None
    if mined is not None:
        teacher = Teacher(
            ignored=_ignored(mined, batch, index, distinct, numbering, positive) if mined.false_negatives else None,
            positive=mined.positive_scores(batch.subsets, batch.positions) if mined.scores else None,
            negative=np.concatenate(scores)[by_row] if mined.scores and scores else None,
        )
    references = [reference for side in sides for reference in side.references(index)]
    digest = hashlib.blake2b(digest_size=8)
    for part in (np.int64(batch.step), hashes, rows, query, positive, negative):
        digest.update(np.ascontiguousarray(part).tobytes())
    if teacher is not None and teacher.ignored is not None:
        digest.update(np.ascontiguousarray(teacher.ignored).tobytes())
    return BatchLayout(
        items=tuple(references[entry] for entry in first[in_rank_order].tolist()),
        counts=tuple(len(own) for own in rank_items),
        query=query,
        positive=positive,
        negative=negative if scores else None,
        negative_row=negative_row if scores else None,
        teacher=teacher,
        digest=int.from_bytes(digest.digest(), "little") >> 1,
    )


def distribute(costs: npt.NDArray[np.int64], num_ranks: int) -> list[npt.NDArray[np.int64]]:
    """Distributes items to ranks with about equal costs (greedy: longest processing time first).

    Every choice depends only on the costs and the items' order, so all ranks compute the same.

    Returns:
        The items of each rank, most expensive first.
    """
    items_of_rank: list[list[int]] = [[] for _ in range(num_ranks)]
    load = [(0, rank) for rank in range(num_ranks)]
    for item in np.argsort(-costs, kind="stable"):
        cost, rank = heapq.heappop(load)
        items_of_rank[rank].append(int(item))
        heapq.heappush(load, (cost + int(costs[item]), rank))
    return [np.array(items, dtype=np.int64) for items in items_of_rank]


def _ignored(
    mined: MinedRows,
    batch: GlobalBatch,
    index: SampleIndex,
    distinct: npt.NDArray[np.int64],
    numbering: npt.NDArray[np.int64],
    positive: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Row and item of each false negative in the batch, by content: a different sample's equal target counts too.

    Args:
        mined: The sidecar, with the false negatives.
        batch: The rows.
        index: The index, with the targets' hashes.
        distinct: Hashes of the batch's items, sorted.
        numbering: Number of each of them in the layout.
        positive: Number of each row's target, which is no negative of its row.
    """
    rows, subsets, positions = mined.row_false_negatives(batch.subsets, batch.positions)
    hashes = ItemPlaces(POSITIVE, rows, subsets, positions).hashes(index)
    place = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
    items = numbering[place]
    is_there = (distinct[place] == hashes) & (items != positive[rows])
    return np.unique(np.stack([rows[is_there], items[is_there]], axis=1), axis=0)
