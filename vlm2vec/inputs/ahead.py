"""Prepares chunks in a thread ahead of the model, so that the accelerator does not wait for image decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from vlm2vec.contrastive import Chunk
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.items import EncodeItem

_CHUNKS_AHEAD = 2


def chunks_ahead(
    inputs: ItemEncoderInputs, items: Sequence[EncodeItem], batches: Sequence[Sequence[int]]
) -> Iterator[Chunk]:
    """Yields the chunk of each batch; a thread decodes and preprocesses the next images while the model computes.

    Args:
        inputs: Makes the chunks.
        items: All items.
        batches: Indices into `items`.

    Raises:
        InputError: An item cannot be encoded; the message names it.
    """
    todo = iter(batches)
    with ThreadPoolExecutor(max_workers=1) as pool:

        def submitted(count: int) -> list[Future[Chunk]]:
            return [pool.submit(inputs.chunk_of, [items[index] for index in batch]) for batch in islice(todo, count)]

        ahead = submitted(_CHUNKS_AHEAD)
        while ahead:
            ready = ahead.pop(0).result()
            ahead += submitted(1)
            yield ready
