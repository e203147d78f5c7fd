"""Plan of one rank's part of a step: its items and chunks, before any image is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm2vec.batches.layout.places import ItemReference
from vlm2vec.contrastive import StepLayout
from vlm2vec.inputs.packing import PackedItem, Packing, TokenBudget, merge


@dataclass(frozen=True)
class ChunkSizes:
    """How a rank's items become chunks.

    Attributes:
        packing: How items are packed into chunks with a graph.
        no_grad_tokens: Token budget of pass 1, which has no graph; None: it runs the chunks of pass 2.
        keep_graphs: Number of chunks, the last ones, whose graph is kept from pass 1, so that pass 2 need not run them.
    """

    packing: Packing
    no_grad_tokens: int | None = None
    keep_graphs: int = 0

    def phases(self, items: Sequence[PackedItem]) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        """Item indices of each chunk in pass 1, in pass 1 with graph, and in pass 2 (see `StepChunks`)."""
        chunks = self.packing.pack(items)
        first_kept = max(0, len(chunks) - self.keep_graphs)
        repeat, keep = chunks[:first_kept], chunks[first_kept:]
        encode = repeat if self.no_grad_tokens is None else merge(repeat, items, TokenBudget(self.no_grad_tokens))
        return encode, keep, repeat


@dataclass(frozen=True)
class StepHeader:
    """One rank's part of a global batch without the chunks.

    Attributes:
        step: Number of the step, counted from 0.
        epoch: Number of the epoch, counted from 0.
        layout: The items' places in the global batch.
        row_subsets: Subset of each of this rank's rows, as index into the shards' subsets, shape (rows,), int64.
        num_items: Number of items that this rank encodes.
        num_tokens: Their tokens, without padding.
        squared_tokens: Sum of the squares of their tokens, proportional to the cost of attention.
        vision_units: Units that the vision tower runs on for them.
        squared_vision_units: Sum of the squares of their images' vision units.
        phases: Number of chunks, and of chunks with images, in each phase of `StepChunks`.
    """

    step: int
    epoch: int
    layout: StepLayout
    row_subsets: Tensor
    num_items: int
    num_tokens: int
    squared_tokens: int
    vision_units: int
    squared_vision_units: int
    phases: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class PlannedItem:
    """An item of a step: its text, and the place of its images, which are read when its chunk is made.

    Attributes:
        reference: Its place in the shards.
        name: Its name in messages.
        text: Its text.
        measured: Its size; an unusable item has the size of an empty text.
        damage: Why it cannot be used; None if it can.
    """

    reference: ItemReference
    name: str
    text: str
    measured: PackedItem
    damage: str | None = None


@dataclass(frozen=True)
class StepPlan:
    """Plan of one rank's step, tokenised and packed but not decoded; small, because it is sent between processes.

    Attributes:
        header: Everything that is known without decoding.
        chunks: Items of every chunk, in the order in which the step runs them, phase by phase.
    """

    header: StepHeader
    chunks: list[list[PlannedItem]]


def end_to_end_positions(chunks: Sequence[Sequence[int]]) -> Tensor:
    """Position of each item in the concatenated chunks, shape (items,), int64."""
    end_to_end = torch.tensor([index for chunk in chunks for index in chunk], dtype=torch.int64)
    position = torch.empty_like(end_to_end)
    position[end_to_end] = torch.arange(len(end_to_end))
    return position
