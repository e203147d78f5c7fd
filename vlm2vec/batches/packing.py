"""Packing a rank's items into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PackedItem:
    """What packing looks at.

    Attributes:
        num_tokens: Length of the item's row, image tokens included.
        has_image: Whether the vision tower runs for it.
        is_query: Whether it is the query side of a pair.
    """

    num_tokens: int
    has_image: bool
    is_query: bool


@dataclass(frozen=True)
class TokenBudget:
    """As many items a chunk as fit under a number of tokens, padding counted.

    Items are sorted by length, those with images first, so that padding is small and the vision tower runs in as few
    chunks as possible. An item longer than the budget is a chunk of its own.
    """

    chunk_tokens: int

    def pack(self, items: Sequence[PackedItem]) -> list[list[int]]:
        """Chunks of indices into `items`; every item once."""
        chunks: list[list[int]] = []
        width = 0
        for index in _longest_first(items, range(len(items))):
            item = items[index]
            previous = items[chunks[-1][0]] if chunks else None
            fits = (
                previous is not None
                and previous.has_image == item.has_image
                and (len(chunks[-1]) + 1) * width <= self.chunk_tokens
            )
            if fits:
                chunks[-1].append(index)
            else:
                chunks.append([index])
                width = item.num_tokens
        return chunks


@dataclass(frozen=True)
class FixedCounts:
    """So many queries, or so many targets, a chunk, as the original's `--gc_q_chunk_size` and `--gc_p_chunk_size`."""

    query_chunk_size: int
    positive_chunk_size: int

    def pack(self, items: Sequence[PackedItem]) -> list[list[int]]:
        """Chunks of indices into `items`; every item once."""
        chunks: list[list[int]] = []
        for is_query, size in ((True, self.query_chunk_size), (False, self.positive_chunk_size)):
            side = _longest_first(items, [index for index, item in enumerate(items) if item.is_query == is_query])
            chunks.extend(side[start : start + size] for start in range(0, len(side), size))
        return chunks


Packing = TokenBudget | FixedCounts


def _longest_first(items: Sequence[PackedItem], indices: Sequence[int]) -> list[int]:
    return sorted(indices, key=lambda index: (not items[index].has_image, -items[index].num_tokens))
