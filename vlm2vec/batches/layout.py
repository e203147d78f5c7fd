"""One global batch as items on ranks: identical items once, dealt by their cost."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vlm2vec.batches.replacement import GlobalBatch
from vlm2vec.mined.rows import MinedRows, by_subset

QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"
_PAIR = (QUERY, POSITIVE)


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
class Teacher:
    """What a teacher says of a batch's rows; None for what does not take part.

    Attributes:
        ignored: Row and item of each false negative that is in the batch, shape (couples, 2), int64.
        positive: Its cosine of each row's query and target, shape (batch,), float32.
        negative: The same for each hard negative, NaN for those that it did not mine, shape (hard negatives,), float32;
            None also where the batch has no hard negatives.
    """

    ignored: npt.NDArray[np.int64] | None
    positive: npt.NDArray[np.float32] | None
    negative: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class BatchLayout:
    """How one global batch lies on the ranks. All ranks compute the same from the index alone, without talking.

    Items are numbered rank by rank: rank r encodes `items[offset:offset + counts[r]]`.

    Attributes:
        items: Every distinct item of the batch, in that numbering.
        counts: The number of items of each rank.
        query: Number of each row's query item, shape (batch,), int64.
        positive: Number of each row's target item, shape (batch,), int64.
        negative: Number of each hard negative's item, in the order of rows, a row's own before its mined ones, shape
            (hard negatives,), int64; None if hard negatives do not take part.
        negative_row: The row that each hard negative belongs to, shape (hard negatives,), int64.
        teacher: What a teacher says of the rows; None if it is not asked.
        digest: A hash of step, items and numbering, positive and below 2^63.
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
    """Finds the distinct items of a global batch and deals them to the ranks.

    Args:
        batch: The samples.
        index: Their index columns.
        item_cost: Estimates an item's tokens.
        num_ranks: Ranks to deal to.
        hard_negatives: Whether the samples' hard negatives take part.
        mined: What of a teacher's sidecar takes part.
        damaged: Samples (subset, position) that cannot be read, which mined negatives leave out.
    """
    every_row = np.arange(len(batch.positions))
    sides = [_side(_Places(side, every_row, batch.subsets, batch.positions), index, item_cost) for side in _PAIR]
    if hard_negatives:
        sides.append(_side(_with_negative(batch, index), index, item_cost))
    scores = [np.full(len(side.places.rows), np.nan, np.float32) for side in sides[len(_PAIR) :]]
    if mined is not None and mined.negatives:
        found = mined.row_negatives(batch.subsets, batch.positions, by_subset(index.subsets, damaged))
        sides.append(_side(_Places(POSITIVE, found.rows, found.subsets, found.positions), index, item_cost))
        scores.append(found.scores)
    hashes, costs = (
        np.concatenate(parts) for parts in zip(*((side.hashes, side.costs) for side in sides), strict=True)
    )
    distinct, first, item_of_entry = np.unique(hashes, return_index=True, return_inverse=True)
    # np.unique sorts by hash; order by first appearance keeps the numbering readable and independent of hash values.
    appearance = np.argsort(first, kind="stable")
    rank_items = deal(costs[first[appearance]], num_ranks)
    dealt = appearance[np.concatenate(rank_items)]
    numbering = np.empty(len(first), dtype=np.int64)
    numbering[dealt] = np.arange(len(first))
    rows = np.concatenate([side.places.rows for side in sides])
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
    digest = hashlib.blake2b(digest_size=8)
    for part in (np.int64(batch.step), hashes, rows, query, positive, negative):
        digest.update(np.ascontiguousarray(part).tobytes())
    if teacher is not None and teacher.ignored is not None:
        digest.update(np.ascontiguousarray(teacher.ignored).tobytes())
    return BatchLayout(
        items=tuple(_references(index, sides, first[dealt])),
        counts=tuple(len(own) for own in rank_items),
        query=query,
        positive=positive,
        negative=negative if scores else None,
        negative_row=negative_row if scores else None,
        teacher=teacher,
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
class _Places:
    """Where some items are read: a side of samples, and the rows that they belong to, shape (entries,) each."""

    side: str
    rows: npt.NDArray[np.int64]
    subsets: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Side:
    """Some items: where they are read, what they are, what they cost, shape (entries,) each."""

    places: _Places
    hashes: npt.NDArray[np.int64]
    costs: npt.NDArray[np.int64]


def _with_negative(batch: GlobalBatch, index: SampleIndex) -> _Places:
    """The hard negatives of the samples that have one."""
    present = _values(index, ["has_negative"], batch.subsets, batch.positions)[0]
    rows = np.flatnonzero(present)
    return _Places(NEGATIVE, rows, batch.subsets[rows], batch.positions[rows])


def _side(places: _Places, index: SampleIndex, item_cost: ItemCost) -> _Side:
    names = [f"{places.side}_{name}" for name in ("hash", "text_length", "width", "height")]
    hashes, *sizes = _values(index, names, places.subsets, places.positions)
    costs = [item_cost(*size) for size in zip(*(size.tolist() for size in sizes), strict=True)]
    return _Side(places, hashes, np.array(costs, dtype=np.int64))


def _values(
    index: SampleIndex, names: Sequence[str], subsets: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Index columns of some samples, shape (names, samples)."""
    values = np.zeros((len(names), len(positions)), dtype=np.int64)
    for subset in np.unique(subsets).tolist():
        members = np.flatnonzero(subsets == subset)
        columns = index.columns(index.subsets[subset])
        for value, name in zip(values, names, strict=True):
            value[members] = columns[name][positions[members]]
    return values


def _ignored(
    mined: MinedRows,
    batch: GlobalBatch,
    index: SampleIndex,
    distinct: npt.NDArray[np.int64],
    numbering: npt.NDArray[np.int64],
    positive: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Row and item of each false negative in the batch, by content: an equal target of another sample counts too.

    Args:
        mined: Names the false negatives.
        batch: The rows.
        index: Knows the hash of a target.
        distinct: Hashes of the batch's items, sorted.
        numbering: Their numbers.
        positive: The number of each row's target, which is no negative of its row.
    """
    rows, subsets, positions = mined.row_false_negatives(batch.subsets, batch.positions)
    hashes = _values(index, [f"{POSITIVE}_hash"], subsets, positions)[0]
    place = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
    items = numbering[place]
    is_there = (distinct[place] == hashes) & (items != positive[rows])
    return np.unique(np.stack([rows[is_there], items[is_there]], axis=1), axis=0)


def _references(index: SampleIndex, sides: Sequence[_Side], entries: npt.NDArray[np.int64]) -> Iterator[ItemReference]:
    """Where some entries, counted over all sides, are read."""
    side_of_entry = np.repeat(np.arange(len(sides)), [len(side.places.rows) for side in sides])[entries]
    subsets = np.concatenate([side.places.subsets for side in sides])[entries]
    positions = np.concatenate([side.places.positions for side in sides])[entries]
    for subset, position, side in zip(subsets.tolist(), positions.tolist(), side_of_entry.tolist(), strict=True):
        yield ItemReference(index.subsets[subset], position, sides[side].places.side)
