"""One global batch as items on ranks: identical items once, dealt by their cost."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlm2vec.batches.order import GlobalBatch

SIDES = ("query", "positive")


class SampleIndex(Protocol):
    """The index columns of a set of shards (`vlm2vec.shards.ShardSet`)."""

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets."""

    def columns(self, subset: str) -> Mapping[str, NDArray[np.generic]]:
        """The subset's index columns, one entry a sample."""


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
        digest: A hash of step, items and numbering, positive and below 2^63.
    """

    items: tuple[ItemReference, ...]
    counts: tuple[int, ...]
    query: NDArray[np.int64]
    positive: NDArray[np.int64]
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
    batch: GlobalBatch, index: SampleIndex, item_cost: Callable[[int, int, int], int], num_ranks: int
) -> BatchLayout:
    """Finds the distinct items of a global batch and deals them to the ranks.

    Args:
        batch: The samples.
        index: Their index columns.
        item_cost: Estimated tokens of an item from (characters of text, image width, image height); width 0 means no
            image.
        num_ranks: Ranks to deal to.
    """
    references, hashes, costs = _items(batch, index, item_cost)
    _, first, item_of_side = np.unique(hashes, return_index=True, return_inverse=True)
    # np.unique sorts by hash; order by first appearance keeps the numbering readable and independent of hash values.
    appearance = np.argsort(first, kind="stable")
    rank_items = deal(costs[first[appearance]], num_ranks)
    numbering = np.empty(len(first), dtype=np.int64)
    numbering[appearance[np.concatenate(rank_items)]] = np.arange(len(first))
    number_of_side = numbering[item_of_side].reshape(len(SIDES), -1)
    items = tuple(references[first[appearance[item]]] for own in rank_items for item in own)
    digest = hashlib.blake2b(digest_size=8)
    for part in (np.int64(batch.step), hashes, number_of_side):
        digest.update(np.ascontiguousarray(part).tobytes())
    return BatchLayout(
        items=items,
        counts=tuple(len(own) for own in rank_items),
        query=number_of_side[0],
        positive=number_of_side[1],
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


def _items(
    batch: GlobalBatch, index: SampleIndex, item_cost: Callable[[int, int, int], int]
) -> tuple[Sequence[ItemReference], NDArray[np.int64], NDArray[np.int64]]:
    """All sides of all samples, queries first: where they are, their content hashes and their costs."""
    references: list[ItemReference] = []
    hashes = np.empty((len(SIDES), len(batch.positions)), dtype=np.int64)
    costs = np.empty_like(hashes)
    columns = {subset: index.columns(index.subsets[subset]) for subset in np.unique(batch.subsets)}
    for side_number, side in enumerate(SIDES):
        for row, (subset, position) in enumerate(zip(batch.subsets, batch.positions, strict=True)):
            column = columns[subset]
            references.append(ItemReference(index.subsets[subset], int(position), side))
            hashes[side_number, row] = column[f"{side}_hash"][position]
            costs[side_number, row] = item_cost(
                int(column[f"{side}_text_length"][position]),
                int(column[f"{side}_width"][position]),
                int(column[f"{side}_height"][position]),
            )
    return references, hashes.reshape(-1), costs.reshape(-1)
