"""Writes one shard: a plain USTAR tar that WebDataset reads, its index, and the sidecar that commits it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from vlm2vec.files import publish, temporary_for
from vlm2vec.images.decode import ImageHeader
from vlm2vec.shards.entry import IndexEntry, ItemEntry
from vlm2vec.shards.index import version_of, write_index
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.schema import (
    IMAGE,
    JSON_MEMBER,
    NEGATIVE,
    POSITIVE,
    QUERY,
    SEVERAL_IMAGES,
    SEVERAL_NEGATIVES,
    fast_hash,
    image_members,
    item_hash,
    sample_key,
)
from vlm2vec.shards.sidecar import Sidecar, UnusableImage, UnusableRow
from vlm2vec.shards.tar import end_of_archive, member

# Size of the write buffer; samples with photographs are larger and are written without a copy into it.
_BUFFER_BYTES = 1 << 16
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class StoredImage:
    """An image ready to be written: its bytes are copied as they are, never re-encoded.

    Attributes:
        data: The undecoded bytes.
        header: Format and size.
        hash: `schema.fast_hash` of the bytes.
        path: Path of the source image, to trace a sample back.
    """

    data: bytes
    header: ImageHeader
    hash: int
    path: str


@dataclass(frozen=True)
class StoredItem:
    """A query, target or hard negative, ready to be written; "" means no text."""

    text: str
    images: tuple[StoredImage, ...] = ()


class ShardWriter:
    """Collects a shard's samples in a temporary tar; `commit` publishes tar, index and sidecar, in this order.

    The sidecar is the commit mark: if it exists, the other two are complete. Leaving the `with` block without `commit`
    leaves no file. The same samples give the same bytes.
    """

    def __init__(self, folder: Path, name: str, subset: str) -> None:
        self._folder, self._name, self._subset = folder, name, subset
        folder.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_for(folder / f"{name}.tar")
        self._tar = open(self._temporary, "wb", _BUFFER_BYTES)  # noqa: SIM115 - closed by commit or __exit__
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._entries: list[IndexEntry] = []
        self._image_hashes: set[int] = set()
        self._image_bytes = self._duplicate_image_bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def add(self, row: int, query: StoredItem, positive: StoredItem, negatives: Sequence[StoredItem] = ()) -> None:
        """Appends the sample of a source row."""
        key = sample_key(self._subset, row)
        sides = [(QUERY, 0, query), (POSITIVE, 0, positive)]
        sides += [(NEGATIVE, number, item) for number, item in enumerate(negatives)]
        pieces = [*member(f"{key}.{JSON_MEMBER}", self._record(row, query, positive, negatives))]
        for side, number, item in sides:
            names = image_members(side, number, len(negatives), len(item.images))
            for name, image in zip(names, item.images, strict=True):
                pieces += member(f"{key}.{name}.{image.header.extension}", image.data)
                self._count(image)
        span = b"".join(pieces)
        items = [_item_entry(item) for _, _, item in sides]
        entry = IndexEntry(row, self._size, len(span), fast_hash(span), items[0], items[1], tuple(items[2:]))
        self._entries.append(entry)
        self._write(span)

    def _write(self, content: bytes) -> None:
        self._tar.write(content)
        self._sha256.update(content)
        self._size += len(content)

    def _record(self, row: int, query: StoredItem, positive: StoredItem, negatives: Sequence[StoredItem]) -> bytes:
        """The sample's JSON; "negatives" replaces "negative" if there are several."""
        record: dict[str, Any] = {"subset": self._subset, "row": row}
        record |= {QUERY: _item_record(query), POSITIVE: _item_record(positive)}
        items = [_item_record(item) for item in negatives]
        if len(items) > 1:
            record[SEVERAL_NEGATIVES] = items
        else:
            record[NEGATIVE] = items[0] if items else None
        return _ENCODER.encode(record).encode()

    def _count(self, image: StoredImage) -> None:
        self._image_bytes += len(image.data)
        if image.hash in self._image_hashes:
            self._duplicate_image_bytes += len(image.data)
        self._image_hashes.add(image.hash)

    def commit(
        self,
        rows: tuple[int, int],
        skipped: Mapping[str, int],
        unusable_images: Sequence[UnusableImage] = (),
        unusable_rows: Sequence[UnusableRow] = (),
    ) -> ShardRecord:
        """Finishes the shard.

        Args:
            rows: Range of source rows that the shard covers.
            skipped: Number of rows of the range that were not added, by reason.
            unusable_images: Unusable images, for which rows were left out; recorded in the sidecar.
            unusable_rows: Rows that were left out because of their content; recorded in the sidecar.
        """
        self._write(end_of_archive(self._size))
        self._tar.close()
        publish(self._temporary, self._folder / f"{self._name}.tar")
        record = ShardRecord(
            name=self._name,
            bytes=self._size,
            sha256=self._sha256.hexdigest(),
            index_sha256=write_index(self._folder / f"{self._name}.parquet", self._entries),
            num_samples=len(self._entries),
            rows=rows,
            skipped=dict(sorted(skipped.items())),
            unique_images=len(self._image_hashes),
            image_bytes=self._image_bytes,
            duplicate_image_bytes=self._duplicate_image_bytes,
            index_version=version_of(self._entries),
        )
        Sidecar(record, tuple(unusable_images), tuple(unusable_rows)).write(self._folder / f"{self._name}.json")
        return record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # after an error the content does not matter; after commit it is closed already
            self._tar.close()
        self._temporary.unlink(missing_ok=True)


def _item_entry(item: StoredItem) -> ItemEntry:
    hashes = tuple(image.hash for image in item.images)
    sizes = tuple((image.header.width, image.header.height) for image in item.images)
    return ItemEntry(len(item.text), item_hash(item.text, hashes), sizes, hashes)


def _item_record(item: StoredItem) -> dict[str, Any]:
    """An item's JSON; "images" replaces "image" if there are several."""
    images = [{"path": each.path, "width": each.header.width, "height": each.header.height} for each in item.images]
    if len(images) > 1:
        return {"text": item.text, SEVERAL_IMAGES: images}
    return {"text": item.text, IMAGE: images[0] if images else None}
