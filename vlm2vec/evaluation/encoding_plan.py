"""Plans the encoding of distinct items in batches that depend only on the items, not on ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlm2vec.batches.layout import distribute
from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.images import ImageFile
from vlm2vec.evaluation.data.items import Indices, ItemTable
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.items import errors_of
from vlm2vec.inputs.packing import PackedItem, TokenBudget
from vlm2vec.item_rules import with_frames

# Batches of a block, which is the most that a kill loses, and the number of blocks below which they get fewer batches,
# so that every rank gets blocks.
_BLOCK_BATCHES = 16
_LEAST_BLOCKS = 64


@dataclass(frozen=True)
class EncodingPlan:
    """The order in which distinct items are encoded, and their batches.

    Two items are the same if text and image bytes are, whatever the image's path. The plan depends only on the items
    and the processor, never on ranks: the last bits of a vector depend on its batch, so batches must not change.

    Attributes:
        order: The table's item for every store row, int32 (distinct items,); items with images first, then the longest.
        position: The store row of every item of the table, int32 (items,).
        bounds: Batch b holds the store rows from `bounds[b]` to `bounds[b + 1]`, int64 (batches + 1,).
        num_image_batches: Number of batches with images, which are the first ones.
        costs: Padded tokens of every batch, including those that its vision units count as, int64 (batches,).
        digest: Hash of the distinct items and their batches.
    """

    order: Indices
    position: Indices
    bounds: npt.NDArray[np.int64]
    num_image_batches: int
    costs: npt.NDArray[np.int64]
    digest: str

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return len(self.bounds) - 1

    def rows(self, batch: int) -> range:
        """The store rows of a batch."""
        return range(int(self.bounds[batch]), int(self.bounds[batch + 1]))

    def blocks(self) -> list[range]:
        """Ranges of batches that are encoded and stored together."""
        size = max(1, min(_BLOCK_BATCHES, self.num_batches // _LEAST_BLOCKS))
        return [range(start, min(start + size, self.num_batches)) for start in range(0, self.num_batches, size)]

    def distribute_blocks(self, numbers: Sequence[int], num_ranks: int) -> list[list[int]]:
        """Distributes blocks, so that every rank gets about the same number of tokens.

        Returns:
            Numbers of each rank's blocks, in the plan's order.
        """
        blocks = self.blocks()
        costs = [int(self.costs[blocks[number].start : blocks[number].stop].sum()) for number in numbers]
        ranks = distribute(np.asarray(costs, dtype=np.int64), num_ranks)
        return [sorted(numbers[index] for index in rank) for rank in ranks]


def plan_encoding(
    items: ItemTable,
    images: Mapping[str, ImageFile],
    inputs: ItemEncoderInputs,
    batch_tokens: int,
    max_items: int | None = None,
) -> EncodingPlan:
    """Finds the distinct items, counts their tokens and packs batches of like length.

    Args:
        items: The table.
        images: Its image files by path.
        inputs: Measures the items.
        batch_tokens: Most padded tokens per batch.
        max_items: Most items per batch; None: as many as fit.

    Raises:
        InputError: A text's tags do not match its images, or an item has neither text nor image; the message names the
            row.
    """
    if not len(items):
        raise InputError("no items to encode")
    numbers: dict[tuple[str, bytes], int] = {}
    first: list[int] = []
    packed: list[PackedItem] = []
    distinct = np.empty(len(items), dtype=np.int32)
    prompt_format = inputs.processor.prompt_format
    for index in range(len(items)):
        path, instruction = items.image(index), items.instruction(index)
        image = images[path] if path else None
        sizes = image.sizes if image else ()
        own_text = with_frames(items.text(index), len(sizes))
        with errors_of(items.use(index)):
            # Compared as rendered: an image alone is the same item as an image with the default prompt.
            prompt_format.refuse_empty(own_text, len(sizes))
            text = prompt_format.render(own_text, len(sizes), instruction)
        key = (text, image.content if image else b"")
        number = distinct[index] = numbers.setdefault(key, len(first))
        if number == len(first):
            first.append(index)
            packed.append(inputs.measure(own_text, sizes, items.use(index), instruction=instruction))
    keys = list(numbers)
    return pack_plan(
        packed,
        np.asarray(first, dtype=np.int32),
        distinct,
        _split(TokenBudget(batch_tokens).pack(packed), max_items),
        lambda order, bounds: _digest((keys[number] for number in order), bounds),
    )


def pack_plan(
    packed: Sequence[PackedItem],
    first: Indices,
    distinct: Indices,
    batches: Sequence[Sequence[int]],
    digest: Callable[[Indices, npt.NDArray[np.int64]], str],
) -> EncodingPlan:
    """Makes the plan of given batches.

    Args:
        packed: Size of every distinct item.
        first: The table's first item for each distinct item, int32 (distinct items,).
        distinct: Number of the distinct item for each item of the table, int32 (items,).
        batches: Batches of distinct items, each item once; batches with images come first.
        digest: Computes the hash of the distinct items in a given order, and of the batches' bounds.
    """
    order = np.asarray([number for batch in batches for number in batch], dtype=np.int32)
    row_of_number = np.empty(len(order), dtype=np.int32)
    row_of_number[order] = np.arange(len(order), dtype=np.int32)
    bounds = np.cumsum([0, *(len(batch) for batch in batches)]).astype(np.int64)
    return EncodingPlan(
        order=first[order],
        position=row_of_number[distinct],
        bounds=bounds,
        num_image_batches=sum(packed[batch[0]].has_image for batch in batches),
        costs=np.asarray([_cost([packed[index] for index in batch]) for batch in batches], dtype=np.int64),
        digest=digest(order, bounds),
    )


def _cost(batch: Sequence[PackedItem]) -> int:
    return len(batch) * batch[0].num_tokens + sum(item.vision_tokens for item in batch)


def _split(batches: list[list[int]], max_items: int | None) -> list[list[int]]:
    if max_items is None:
        return batches
    return [batch[start : start + max_items] for batch in batches for start in range(0, len(batch), max_items)]


def _digest(keys: Iterable[tuple[str, bytes]], bounds: npt.NDArray[np.int64]) -> str:
    digest = hashlib.sha256(bounds.tobytes())
    for text, content in keys:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded + len(content).to_bytes(1, "little") + content)
    return digest.hexdigest()
