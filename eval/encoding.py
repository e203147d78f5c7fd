"""Turns the unique items of a run into vectors, each once, and refuses vectors that cannot be ranked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eval.datasets import ItemTable
from eval.progress import progress_bar
from vlm2vec.errors import InputError

# Items handed to the encoder at a time, unless a batch size bounds them: enough for it to pack batches of equal
# length by itself, few enough that the progress bar moves.
_BLOCK_ITEMS = 256
# Vectors that differ in no number by more than this part of the largest number are the same vector in float32.
_EQUAL_TOLERANCE = 1e-6


class Encoder(Protocol):
    """The part of `vlm2vec.encoder.VLM2Vec` that scoring needs."""

    def encode(self, *, texts: Sequence[str], images: Sequence[str | None], show_progress: bool | None = None) -> Any:
        """Returns float32 (n, hidden), in the order of the input."""


def encode_items(
    encoder: Encoder, items: ItemTable, image_dir: Path, max_items: int | None = None
) -> npt.NDArray[np.float32]:
    """Encodes every item of the table once.

    The most expensive items go first (pictures, then long texts): memory that does not suffice shows at once, and
    items of like size share a batch.

    Args:
        max_items: most items in one batch of the encoder; None leaves the packing to the encoder.

    Returns:
        float32 (number of items, hidden), row i the vector of item i.

    Raises:
        InputError: an item that the encoder refuses, such as an unreadable picture (the message names the row); NaN
            or infinity in a vector; the same vector for all items.
    """
    order = sorted(range(len(items)), key=lambda index: (items.images[index] == "", -len(items.texts[index]), index))
    block_size = max_items or _BLOCK_ITEMS
    vectors: npt.NDArray[np.float32] | None = None
    with progress_bar(len(order), "encode", "item") as progress:
        for start in range(0, len(order), block_size):
            block = order[start : start + block_size]
            encoded = _encode_block(encoder, items, image_dir, block)
            if vectors is None:
                vectors = np.empty((len(order), encoded.shape[1]), dtype=np.float32)
            vectors[block] = encoded
            progress.update(len(block))
    if vectors is None:
        raise InputError("no items to encode")
    _check_vectors(vectors, items)
    return vectors


def _encode_block(encoder: Encoder, items: ItemTable, image_dir: Path, block: Sequence[int]) -> npt.NDArray[np.float32]:
    texts = [items.texts[index] for index in block]
    images = [str(image_dir / items.images[index]) if items.images[index] else None for index in block]
    try:
        return np.asarray(encoder.encode(texts=texts, images=images, show_progress=False), dtype=np.float32)
    except InputError:
        # The encoder knows an item by its place in the list; alone, the bad one can be named by file and row.
        for index, text, image in zip(block, texts, images, strict=True):
            try:
                encoder.encode(texts=[text], images=[image], show_progress=False)
            except InputError as error:
                raise InputError(f"{items.first_uses[index]}: {str(error).removeprefix('item 0: ')}") from error
        raise


def _check_vectors(vectors: npt.NDArray[np.float32], items: ItemTable) -> None:
    """Refuses what argmax would score as 100 %: it returns index 0, the truth, for NaN and for all-equal scores."""
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise InputError(
            f"the model gives NaN or infinity for {len(broken)} of {len(vectors)} items, first at "
            f"{items.first_uses[broken[0]]}; no score is possible, check the checkpoint and its precision"
        )
    if len(vectors) > 1 and np.ptp(vectors, axis=0).max() <= _EQUAL_TOLERANCE * np.abs(vectors).max():
        raise InputError(
            f"the model gives the same vector for all {len(vectors)} items; no score is possible, it has collapsed"
        )
