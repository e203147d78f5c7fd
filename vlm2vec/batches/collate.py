"""From references into the shards to a rank's chunks: read, tokenise, pack; decode and crop when a chunk is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm2vec.batches.layout import QUERY, BatchLayout, ItemReference
from vlm2vec.batches.packing import PackedItem, Packing, merge
from vlm2vec.batches.replacement import GlobalBatch
from vlm2vec.contrastive import Chunk, Pairs, StepLayout
from vlm2vec.errors import InputError
from vlm2vec.images import open_image, read_header
from vlm2vec.phi3_v import Phi3VProcessor, ProcessedItem, collate_items
from vlm2vec.shards import Item, Sample, ShardSet

# English text has about four characters a token under the Phi-3 tokenizer. Only the ranks' balance depends on it.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class NamedItem:
    """An item as it was read, its picture undecoded, with the name that messages use."""

    item: Item
    name: str


class ItemEncoderInputs:
    """Makes the encoder's inputs from items.

    Args:
        processor: Tokenises text and crops pictures.
        max_len: Longest text-only item in tokens (`--max_len`).
        pixel_dtype: Dtype in which crops wait for their turn; the compute dtype, so that bf16 halves their memory.
    """

    def __init__(
        self, processor: Phi3VProcessor, max_len: int | None, pixel_dtype: torch.dtype = torch.float32
    ) -> None:
        self.processor = processor
        self.max_len = max_len
        self.pixel_dtype = pixel_dtype

    def cost(self, text_length: int, width: int, height: int) -> int:
        """Estimated tokens of an item from its index entry; width 0 means no image."""
        text = 1 + text_length // CHARACTERS_PER_TOKEN
        if width:
            return text + self.processor.num_image_tokens(width, height)
        return min(text, self.max_len) if self.max_len else text

    def num_tokens(self, named: NamedItem) -> int:
        """Tokens of an item; its picture is not decoded.

        Raises:
            InputError: Text and picture do not fit together, or the picture is none; the message names the sample.
        """
        item = named.item
        try:
            image_tokens = []
            if item.image is not None:
                header = read_header(item.image, named.name)
                image_tokens = [self.processor.num_image_tokens(header.width, header.height)]
            return len(self.processor.tokenize(item.text, image_tokens, self.max_len))
        except InputError as error:
            raise _named(error, named.name) from error

    def process(self, named: NamedItem) -> ProcessedItem:
        """Decodes and tokenises one item.

        Raises:
            InputError: The picture or the text cannot be used; the message names the sample.
        """
        item = named.item
        try:
            images = [open_image(item.image, named.name)] if item.image is not None else []
            return self.processor.process_item(item.text, images, self.max_len)
        except InputError as error:
            raise _named(error, named.name) from error

    def chunk(self, items: Sequence[ProcessedItem], names: Sequence[str] = ()) -> Chunk:
        """One engine call for some items."""
        inputs: dict[str, Any] = collate_items(items, self.processor.pad_token_id)
        # The vision layout is computed on the host: on the device every call would wait for it.
        image_sizes = inputs.pop("image_sizes")
        has_image = inputs["pixel_values"] is not None
        if has_image:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.pixel_dtype)
        return Chunk(inputs, len(items), has_image, {"image_sizes": image_sizes}, tuple(names))

    def padding_chunk(self) -> Chunk:
        """The smallest chunk: what a rank runs, with weight zero, where others have more chunks."""
        return self.chunk([self.processor.process_item("", [], self.max_len)])


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
        encode = repeat if self.no_grad_tokens is None else merge(repeat, items, self.no_grad_tokens)
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
        phases: For each phase of `StepChunks` the number of chunks, and of chunks with images.
    """

    step: int
    epoch: int
    layout: StepLayout
    row_subsets: Tensor
    num_items: int
    num_tokens: int
    phases: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class StepPlan:
    """A step of one rank, read but not decoded.

    Attributes:
        header: What is known without decoding.
        items: The rank's items.
        chunks: The items of every chunk, in the order in which the step runs them: all phases, one after another.
    """

    header: StepHeader
    items: list[NamedItem]
    chunks: list[list[int]]


class BatchReader:
    """Reads one rank's part of a global batch.

    Args:
        shards: Where the samples are.
        inputs: Makes the encoder's inputs.
        chunk_sizes: How items become chunks.
        rank: The rank to read for.
    """

    def __init__(self, shards: ShardSet, inputs: ItemEncoderInputs, chunk_sizes: ChunkSizes, rank: int) -> None:
        self.shards = shards
        self.inputs = inputs
        self.chunk_sizes = chunk_sizes
        self.rank = rank

    def plan(self, batch: GlobalBatch, layout: BatchLayout) -> StepPlan:
        """Reads this rank's items and packs them.

        Raises:
            InputError: A sample cannot be read; the message names it.
        """
        references = layout.of_rank(self.rank)
        samples: dict[tuple[str, int], Sample] = {}
        items = [self._item(reference, samples) for reference in references]
        packed = [
            PackedItem(self.inputs.num_tokens(named), named.item.image is not None, reference.side == QUERY)
            for named, reference in zip(items, references, strict=True)
        ]
        phases = self.chunk_sizes.phases(packed)
        encode, keep, _ = phases
        rows = layout.rows_of_rank(self.rank)
        negative = None if layout.negative is None else torch.from_numpy(layout.negative)
        header = StepHeader(
            step=batch.step,
            epoch=batch.epoch,
            layout=StepLayout(
                counts=layout.counts,
                local_order=end_to_end_positions([*encode, *keep]),
                pairs=Pairs(torch.from_numpy(layout.query), torch.from_numpy(layout.positive), negative),
                rows=rows,
                digest=layout.digest,
            ),
            row_subsets=torch.from_numpy(np.ascontiguousarray(batch.subsets[rows.start : rows.stop])),
            num_items=len(items),
            num_tokens=sum(item.num_tokens for item in packed),
            phases=tuple((len(phase), sum(packed[chunk[0]].has_image for chunk in phase)) for phase in phases),
        )
        return StepPlan(header, items, [chunk for phase in phases for chunk in phase])

    def chunk(self, plan: StepPlan, number: int) -> Chunk:
        """Decodes and crops the items of one of the plan's chunks.

        Raises:
            InputError: A picture cannot be used; the message names the sample.
        """
        items = [plan.items[index] for index in plan.chunks[number]]
        return self.inputs.chunk([self.inputs.process(named) for named in items], [named.name for named in items])

    def _item(self, reference: ItemReference, samples: dict[tuple[str, int], Sample]) -> NamedItem:
        place = (reference.subset, reference.position)
        if place not in samples:
            samples[place] = self.shards.read(*place)
        sample = samples[place]
        item: Item | None = getattr(sample, reference.side)
        assert item is not None  # the index says which rows have a negative
        return NamedItem(item, f"{sample.key} ({reference.side})")


def end_to_end_positions(chunks: Sequence[Sequence[int]]) -> Tensor:
    """For each item its position in the chunks put end to end, shape (items,), int64."""
    end_to_end = torch.tensor([index for chunk in chunks for index in chunk], dtype=torch.int64)
    position = torch.empty_like(end_to_end)
    position[end_to_end] = torch.arange(len(end_to_end))
    return position


def _named(error: InputError, name: str) -> InputError:
    return error if name in str(error) else InputError(f"{name}: {error}")
