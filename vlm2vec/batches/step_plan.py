"""One rank's part of a step before anything is decoded: its items, and the chunks in which they run."""

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
        packing: Chunks with a graph.
        no_grad_tokens: Token budget of the pass without a graph; None runs the chunks of the pass with one.
        keep_graphs: So many chunks, the last ones, keep their graph from pass 1 and do not run twice.
    """

    packing: Packing
    no_grad_tokens: int | None = None
    keep_graphs: int = 0

    def phases(self, items: Sequence[PackedItem]) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        """Indices of the items of each chunk: in pass 1, in pass 1 with graph, in pass 2 (see `StepChunks`)."""
        chunks = self.packing.pack(items)
        first_kept = max(0, len(chunks) - self.keep_graphs)
        repeat, keep = chunks[:first_kept], chunks[first_kept:]
        encode = repeat if self.no_grad_tokens is None else merge(repeat, items, TokenBudget(self.no_grad_tokens))
        return encode, keep, repeat


@dataclass(frozen=True)
class StepHeader:
    """One rank's part of a global batch but for the chunks.

    Attributes:
        step: Counted from 0.
        epoch: Counted from 0.
        layout: Where the items belong in the global batch.
        row_subsets: The subset of each of this rank's rows, as index into the shards' subsets, shape (rows,), int64.
        num_items: Items that this rank encodes.
        num_tokens: Their tokens, padding not counted.
        squared_tokens: The sum of the squares of their tokens, which attention costs.
        vision_units: What the vision tower runs on for them.
        squared_vision_units: The sum of the squares of their images' vision units.
        phases: For each phase of `StepChunks` the number of chunks, and of chunks with images.
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
    """An item of a step: its text, and where its images are read when its chunk is made.

    Attributes:
        reference: Where it is read.
        name: What messages call it.
        text: Its text.
        measured: What it takes; an item that cannot be used takes what an empty text does.
        damage: Why it cannot be used; None if it can.
    """

    reference: ItemReference
    name: str
    text: str
    measured: PackedItem
    damage: str | None = None


@dataclass(frozen=True)
class StepPlan:
    """A step of one rank, tokenised and packed but not decoded; small, as it travels between processes.

    Attributes:
        header: What is known without decoding.
        chunks: The items of every chunk, in the order in which the step runs them: all phases, one after another.
    """

    header: StepHeader
    chunks: list[list[PlannedItem]]


def end_to_end_positions(chunks: Sequence[Sequence[int]]) -> Tensor:
    """For each item its position in the chunks put end to end, shape (items,), int64."""
    end_to_end = torch.tensor([index for chunk in chunks for index in chunk], dtype=torch.int64)
    position = torch.empty_like(end_to_end)
    position[end_to_end] = torch.arange(len(end_to_end))
    return position
