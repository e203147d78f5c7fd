"""Encodes the batches of a plan: worker processes decode images, and every batch is one call of the encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data

from vlm2vec.batches.worker import end_workers, process_loader
from vlm2vec.contrastive import Chunk
from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.items import ItemTable
from vlm2vec.evaluation.encoding_plan import EncodingPlan
from vlm2vec.evaluation.vector_store import VectorStore
from vlm2vec.images.folder import ImageFolder
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.items import EncodeItem, ItemImage
from vlm2vec.item_rules import with_frames
from vlm2vec.messages.progress import progress_bar

# Vectors are equal in float32 if no component differs by more than this fraction of the largest component.
_EQUAL_TOLERANCE = 1e-6
# Mean cosine of distinct items above which a model has nearly collapsed: rounding errors decide its ranking.
NEARLY_EQUAL_COSINE = 0.9999
_SAMPLED_ITEMS = 1000

# One call of the encoder: its keyword arguments to float32 (items, hidden).
Encode = Callable[..., torch.Tensor]


class ChunkMaker(Protocol):
    """Interface of `ItemEncoderInputs`: makes an encoder call for some items."""

    def chunk_of(self, items: Sequence[EncodeItem]) -> Chunk:
        """Makes one encoder call for some items."""


class ItemSource(torch.utils.data.Dataset["Chunk | InputError"], ABC):
    """Makes a plan's batches on demand; errors are returned as values, because a worker would wrap them.

    Args:
        plan: The plan with the batches.
        inputs: Builds the encoder's inputs.
    """

    def __init__(self, plan: EncodingPlan, inputs: ChunkMaker) -> None:
        self.plan = plan
        self.inputs = inputs

    @abstractmethod
    def item(self, index: int) -> EncodeItem:
        """Reads an item, by its number in the table that the plan was made for.

        Raises:
            InputError: It cannot be read; the message names it.
        """

    def __getitem__(self, batch: int) -> Chunk | InputError:
        try:
            indices = [int(self.plan.order[row]) for row in self.plan.rows(batch)]
            return self.inputs.chunk_of([self.item(index) for index in indices])
        except InputError as error:
            return error

    def chunks(self, batches: Sequence[int], num_workers: int) -> Iterator[Chunk]:
        """Yields the batches in the given order, made ahead by worker processes (0: in this process).

        Raises:
            InputError: An image cannot be decoded; the message names its row.
        """
        chunks = iter(process_loader(self, min(num_workers, len(batches)), sampler=list(batches)))
        try:
            for chunk in chunks:
                if isinstance(chunk, InputError):
                    raise chunk
                yield chunk
        finally:
            end_workers(chunks)


class BatchSource(ItemSource):
    """Makes the batches of a table's items.

    Args:
        items: The table.
        plan: The plan of its batches.
        folder: Folder of the images.
        inputs: Builds the encoder's inputs.
    """

    def __init__(self, items: ItemTable, plan: EncodingPlan, folder: ImageFolder, inputs: ItemEncoderInputs) -> None:
        super().__init__(plan, inputs)
        self.items = items
        self.folder = folder

    def item(self, index: int) -> EncodeItem:
        """Text and image of a row of the table."""
        use, text, image = self.items.use(index), self.items.text(index), self.items.image(index)
        instruction = self.items.instruction(index)
        if not image:
            return EncodeItem(text, (), use, instruction)
        try:
            paths = self.folder.files(image)
            data = [self.folder.read(path) for path in paths]
        except InputError as error:  # the file existed at the start of the run
            raise InputError(f"{use}: {error}") from error
        names = [f"{use}: {self.folder.root / path}" for path in paths]
        images = tuple(map(ItemImage, data, names))
        return EncodeItem(with_frames(text, len(images)), images, names[0], instruction)


def encode_blocks(
    encode: Encode,
    source: ItemSource,
    store: VectorStore,
    numbers: Sequence[int],
    device: torch.device,
    num_workers: int,
) -> None:
    """Encodes blocks of the plan in order, and stores each when it is complete.

    Args:
        encode: The encoder, in evaluation mode.
        source: Makes its inputs.
        store: Receives the vectors.
        numbers: Numbers of the blocks.
        device: Device of the encoder.
        num_workers: Processes that decode images ahead.

    Raises:
        InputError: An item cannot be encoded, or a vector cannot be ranked.
    """
    blocks = source.plan.blocks()
    chunks = source.chunks([batch for number in numbers for batch in blocks[number]], num_workers)
    num_items = sum(len(source.plan.rows(batch)) for number in numbers for batch in blocks[number])
    with progress_bar(num_items, "encode", "item") as progress:
        for number in numbers:
            vectors = []
            for chunk in islice(chunks, len(blocks[number])):
                vectors.append(encode_chunk(encode, chunk, device))
                progress.update(chunk.num_items)
            store.write_block(number, np.concatenate(vectors))


def encode_chunk(encode: Encode, chunk: Chunk, device: torch.device) -> npt.NDArray[np.float32]:
    """Encodes one batch; returns vectors, float32 (items, hidden).

    Raises:
        InputError: A vector holds NaN or infinity; argmax would count it as correct.
    """
    with torch.no_grad():
        vectors: npt.NDArray[np.float32] = encode(**chunk.arguments(device, dummy_image=False)).float().cpu().numpy()
    check_finite(vectors, chunk.names)
    return vectors


def check_finite(vectors: npt.NDArray[np.float32], names: Sequence[str]) -> None:
    """Refuses vectors that cannot be ranked.

    Raises:
        InputError: A vector holds NaN or infinity.
    """
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise InputError(
            f"the model gives NaN or infinity for {len(broken)} of {len(vectors)} items of a batch, first for "
            f"{names[broken[0]]}; no score is possible, check the checkpoint and its precision"
        )


def collapse(vectors: npt.NDArray[np.float32]) -> str | None:
    """Describes the problem of a model whose vectors are all equal or nearly equal; None if they differ.

    Args:
        vectors: Vectors, float32 (distinct items, hidden), of which about a thousand, evenly spaced, are compared.
    """
    some = np.asarray(vectors[:: max(1, len(vectors) // _SAMPLED_ITEMS)], dtype=np.float64)
    if len(some) < 2:
        return None
    if np.ptp(some, axis=0).max() <= _EQUAL_TOLERANCE * np.abs(some).max():
        return "the model returns the same vector for all items: it has collapsed, and every row is a tie, not correct"
    unit = some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    count = len(unit)
    mean_cosine = float((np.square(unit.sum(axis=0)).sum() - count) / (count * (count - 1)))
    if mean_cosine > NEARLY_EQUAL_COSINE:
        return (
            f"the model returns nearly the same vector for all items (mean cosine {mean_cosine:.6f}): "
            "the ranking is decided by rounding errors"
        )
    return None
