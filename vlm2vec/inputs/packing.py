"""Packs items into encoder calls: the chunks of a training step, and the batches of `encode` and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Padded tokens of a batch of `encode` and of an evaluation, about 20 photographs on an accelerator.
DEFAULT_BATCH_TOKENS = 16_384
DEFAULT_BATCH_TOKENS_CPU = 4_096
# Share of the budget below which a call costs nearly as much as a call of that size.
_SMALL_CHUNK = 0.25


@dataclass(frozen=True, slots=True)
class PackedItem:
    """Measurements of an item that planning uses before the item is decoded.

    Attributes:
        num_tokens: Length of the item's row in tokens, including image tokens.
        vision_units: Work of the vision tower, in the model family's unit; 0 without images.
        is_query: Whether the item is the query of a pair.
        vision_tokens: Number of decoder tokens that the vision units count as in a budget, in addition to the row.
        squared_vision_units: Sum of the squared vision units of the images.
    """

    num_tokens: int
    vision_units: int
    is_query: bool = False
    vision_tokens: int = 0
    squared_vision_units: int = 0

    @property
    def has_image(self) -> bool:
        """Whether the vision tower runs for the item."""
        return self.vision_units > 0


@dataclass(frozen=True)
class TokenBudget:
    """Packs as many items into a chunk as a budget of tokens allows, counting padding and vision units.

    Items are sorted by length, those with images first, so that padding is small and the vision tower runs in as few
    chunks as possible. An item longer than the budget gets a separate chunk. A chunk also ends where the next item is
    shorter than its first by more than `max_shortfall`, unless the chunk is still small.

    Attributes:
        chunk_tokens: The budget, in padded tokens.
        max_shortfall: Largest shortfall, as a share of the longest item's length; 1 never ends a chunk.
        images_apart: No chunk mixes items with images and items without: all ranks must run the tower in the same
            chunks.
        keep_order: Chunks consist of neighbours in the given order.
    """

    chunk_tokens: int
    max_shortfall: float = 0.1
    images_apart: bool = True
    keep_order: bool = False

    def pack(self, items: Sequence[PackedItem]) -> list[list[int]]:
        """Returns chunks of indices into `items`; each item is in one chunk."""
        chunks: list[list[int]] = []
        width = vision_tokens = 0
        for index in self._ordered(items):
            item = items[index]
            previous = items[chunks[-1][0]] if chunks else None
            together = max(width, item.num_tokens)
            fits = (
                previous is not None
                and (previous.has_image == item.has_image or not self.images_apart)
                and (len(chunks[-1]) + 1) * together + vision_tokens + item.vision_tokens <= self.chunk_tokens
                and _is_worth_its_padding(item.num_tokens, width, len(chunks[-1]), self)
            )
            if fits:
                chunks[-1].append(index)
                width = together
                vision_tokens += item.vision_tokens
            else:
                chunks.append([index])
                width = item.num_tokens
                vision_tokens = item.vision_tokens
        return chunks

    def _ordered(self, items: Sequence[PackedItem]) -> Sequence[int]:
        if self.keep_order:
            return range(len(items))
        if self.images_apart:
            return _longest_first(items, range(len(items)))
        return sorted(range(len(items)), key=lambda index: -items[index].num_tokens)


@dataclass(frozen=True)
class FixedCounts:
    """Chunks with a fixed number of queries or of targets: the original's `--gc_q_chunk_size` and `--gc_p_chunk_size`.

    Chunks with images come first, because ranks have to agree on them.
    """

    query_chunk_size: int
    positive_chunk_size: int

    def pack(self, items: Sequence[PackedItem]) -> list[list[int]]:
        """Returns chunks of indices into `items`; each item is in one chunk."""
        chunks: list[list[int]] = []
        for is_query, size in ((True, self.query_chunk_size), (False, self.positive_chunk_size)):
            side = _longest_first(items, [index for index, item in enumerate(items) if item.is_query == is_query])
            chunks.extend(side[start : start + size] for start in range(0, len(side), size))
        return sorted(chunks, key=lambda chunk: not items[chunk[0]].has_image)


Packing = TokenBudget | FixedCounts


def default_batch_tokens(device: torch.device) -> int:
    """Default number of padded tokens in a batch."""
    return DEFAULT_BATCH_TOKENS_CPU if device.type == "cpu" else DEFAULT_BATCH_TOKENS


def _is_worth_its_padding(num_tokens: int, width: int, num_rows: int, budget: TokenBudget) -> bool:
    """Whether a row of `num_tokens` should join a chunk of `num_rows` rows with a given width."""
    return num_tokens >= (1 - budget.max_shortfall) * width or num_rows * width < _SMALL_CHUNK * budget.chunk_tokens


def merge(chunks: Sequence[list[int]], items: Sequence[PackedItem], budget: TokenBudget) -> list[list[int]]:
    """Joins neighbouring chunks of the same kind (with or without images) up to a larger budget of padded tokens.

    It is for the pass without a graph, which needs a fraction of the memory. The order of the items is kept.
    """
    merged: list[list[int]] = []
    for chunk in chunks:
        together = [*merged[-1], *chunk] if merged else chunk
        longest, own = (max(items[index].num_tokens for index in each) for each in (together, chunk))
        same_kind = len({items[index].has_image for index in together}) == 1
        vision_tokens = sum(items[index].vision_tokens for index in together)
        fits = same_kind and len(together) * longest + vision_tokens <= budget.chunk_tokens
        if merged and fits and _is_worth_its_padding(own, longest, len(merged[-1]), budget):
            merged[-1] = together
        else:
            merged.append(list(chunk))
    return merged


def _longest_first(items: Sequence[PackedItem], indices: Sequence[int]) -> list[int]:
    return sorted(indices, key=lambda index: (not items[index].has_image, -items[index].num_tokens))
