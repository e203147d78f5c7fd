"""From references into the shards to a rank's chunks: read, decode, tokenise, pack. Runs in the loader's workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm2vec.batches.layout import BatchLayout, ItemReference
from vlm2vec.batches.order import GlobalBatch
from vlm2vec.batches.packing import PackedItem, Packing
from vlm2vec.contrastive import Chunk, Pairs, StepLayout
from vlm2vec.errors import InputError
from vlm2vec.images import open_image
from vlm2vec.phi3_v import Phi3VProcessor, ProcessedItem, collate_items
from vlm2vec.shards import Item, Sample, ShardSet

# English text has about four characters a token under the Phi-3 tokenizer. Only the ranks' balance depends on it.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class TrainingBatch:
    """One rank's part of a global batch, ready for the cached step.

    Attributes:
        step: Counted from 0.
        epoch: Counted from 0.
        chunks: The items that this rank encodes.
        layout: Where they belong in the global batch.
        row_subsets: The subset of each of this rank's rows, as index into the shards' subsets, shape (rows,), int64.
        num_items: Items that this rank encodes.
        num_tokens: Their tokens, padding not counted.
    """

    step: int
    epoch: int
    chunks: list[Chunk]
    layout: StepLayout
    row_subsets: Tensor
    num_items: int
    num_tokens: int


class ItemEncoderInputs:
    """Makes the encoder's inputs from items.

    Args:
        processor: Tokenises text and crops pictures.
        max_len: Longest text-only item in tokens (`--max_len`).
        packing: How items become chunks.
    """

    def __init__(self, processor: Phi3VProcessor, max_len: int | None, packing: Packing) -> None:
        self.processor = processor
        self.max_len = max_len
        self.packing = packing

    def cost(self, text_length: int, width: int, height: int) -> int:
        """Estimated tokens of an item from its index entry; width 0 means no image."""
        text = 1 + text_length // CHARACTERS_PER_TOKEN
        if width:
            return text + self.processor.num_image_tokens(width, height)
        return min(text, self.max_len) if self.max_len else text

    def process(self, item: Item, name: str) -> ProcessedItem:
        """Decodes and tokenises one item.

        Raises:
            InputError: The picture or the text cannot be used; the message names the sample.
        """
        try:
            images = [open_image(item.image, name)] if item.image is not None else []
            return self.processor.process_item(item.text, images, self.max_len)
        except InputError as error:
            raise InputError(str(error) if name in str(error) else f"{name}: {error}") from error

    def chunks(self, items: Sequence[ProcessedItem], is_query: Sequence[bool]) -> tuple[list[Chunk], Tensor]:
        """Packs items into chunks.

        Returns:
            The chunks, and for each item its position in the chunks put end to end, shape (items,), int64.
        """
        packed = self.packing.pack(
            [
                PackedItem(len(item.input_ids), item.pixel_values is not None, query)
                for item, query in zip(items, is_query, strict=True)
            ]
        )
        end_to_end = torch.tensor([index for chunk in packed for index in chunk], dtype=torch.int64)
        position = torch.empty_like(end_to_end)
        position[end_to_end] = torch.arange(len(end_to_end))
        return [self.chunk([items[index] for index in chunk]) for chunk in packed], position

    def chunk(self, items: Sequence[ProcessedItem]) -> Chunk:
        """One engine call for some items."""
        inputs: dict[str, Any] = collate_items(items, self.processor.pad_token_id)
        # The vision layout is computed on the host: on the device every call would wait for it.
        image_sizes = inputs.pop("image_sizes")
        return Chunk(
            inputs=inputs,
            num_items=len(items),
            has_image=inputs["pixel_values"] is not None,
            host_inputs={"image_sizes": image_sizes},
        )

    def padding_chunk(self) -> Chunk:
        """The smallest chunk: what a rank runs, with weight zero, where others have more chunks."""
        return self.chunk([self.processor.process_item("", [], self.max_len)])


class BatchReader:
    """Reads one rank's part of a global batch.

    Args:
        shards: Where the samples are.
        inputs: Makes the encoder's inputs.
        rank: The rank to read for.
    """

    def __init__(self, shards: ShardSet, inputs: ItemEncoderInputs, rank: int) -> None:
        self.shards = shards
        self.inputs = inputs
        self.rank = rank

    def read(self, batch: GlobalBatch, layout: BatchLayout) -> TrainingBatch:
        """Reads, decodes and packs this rank's items.

        Raises:
            InputError: A sample cannot be read; the message names it.
        """
        references = layout.of_rank(self.rank)
        samples: dict[tuple[str, int], Sample] = {}
        items = [self._item(reference, samples) for reference in references]
        chunks, position = self.inputs.chunks(items, [reference.side == "query" for reference in references])
        rows = layout.rows_of_rank(self.rank)
        return TrainingBatch(
            step=batch.step,
            epoch=batch.epoch,
            chunks=chunks,
            layout=StepLayout(
                counts=layout.counts,
                local_order=position,
                pairs=Pairs(torch.from_numpy(layout.query), torch.from_numpy(layout.positive)),
                rows=rows,
                digest=layout.digest,
            ),
            row_subsets=torch.from_numpy(np.ascontiguousarray(batch.subsets[rows.start : rows.stop])),
            num_items=len(items),
            num_tokens=sum(len(item.input_ids) for item in items),
        )

    def _item(self, reference: ItemReference, samples: dict[tuple[str, int], Sample]) -> ProcessedItem:
        place = (reference.subset, reference.position)
        if place not in samples:
            samples[place] = self.shards.read(*place)
        sample = samples[place]
        item = sample.query if reference.side == "query" else sample.positive
        return self.inputs.process(item, f"{sample.key} ({reference.side})")
