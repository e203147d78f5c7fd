"""Shards written directly by the library's writer: rows that the converter refuses, as other programs write them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vlm2vec.images.decode import ImageHeader
from vlm2vec.shards.manifest import Manifest, SubsetRecord
from vlm2vec.shards.schema import fast_hash, shard_name
from vlm2vec.shards.writer import ShardWriter, StoredImage, StoredItem


def stored_image(size: tuple[int, int], shade: int = 0, said: tuple[int, int] | None = None) -> StoredImage:
    """A PNG of this size (width, height), of which the index gives the size `said`."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 60, 90)).save(buffer, "PNG")
    data = buffer.getvalue()
    return StoredImage(data, ImageHeader("png", *(said or size)), fast_hash(data), f"{shade}.png")


def add_subset(root: Path, name: str, queries: Sequence[StoredItem]) -> None:
    """Adds a subset of one shard to the shards in a folder; each target is a text of its own."""
    with ShardWriter(root / name, shard_name(name, 0), name) as writer:
        for row, query in enumerate(queries):
            writer.add(row, query, StoredItem(f"answer {row}"))
        record = writer.commit((0, len(queries)), {})
    manifest = Manifest.read(root)
    dataclasses.replace(manifest, subsets={**manifest.subsets, name: SubsetRecord((), (record,))}).write(root)
