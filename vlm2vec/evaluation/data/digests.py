"""Digest of a dataset's rows, independent of what else is scored, so that changed data are detected."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vlm2vec.evaluation.data.datasets import EvalData, EvalRows
from vlm2vec.evaluation.data.images import ImageFile
from vlm2vec.evaluation.data.items import ItemTable

_ITEM_BYTES = 16
_ROWS_AT_A_TIME = 256


def data_digests(data: EvalData, images: Mapping[str, ImageFile]) -> dict[str, str]:
    """Hash of each dataset's rows in order, by dataset: texts, image paths, image bytes.

    Args:
        data: The evaluation data.
        images: Its images by path.
    """
    items = _item_digests(data.items, images)
    return {rows.name: _digest(rows, items) for rows in data.datasets}


def _item_digests(items: ItemTable, images: Mapping[str, ImageFile]) -> npt.NDArray[np.uint8]:
    """Hash of every item of the table, uint8 (items, 16)."""
    parts = bytearray()
    for index in range(len(items)):
        image = items.image(index)
        digest = hashlib.blake2b(images[image].content if image else b"", digest_size=_ITEM_BYTES)
        for text in (items.text(index), image):
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        parts += digest.digest()
    return np.frombuffer(bytes(parts), dtype=np.uint8).reshape(len(items), _ITEM_BYTES)


def _digest(rows: EvalRows, items: npt.NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(rows.offsets, dtype="<i8").tobytes())
    digest.update(items[rows.queries].tobytes())
    for first in range(0, len(rows), _ROWS_AT_A_TIME):  # in parts, because rows may have a thousand candidates each
        last = min(first + _ROWS_AT_A_TIME, len(rows))
        digest.update(items[rows.candidates[rows.offsets[first] : rows.offsets[last]]].tobytes())
    return digest.hexdigest()[:16]
