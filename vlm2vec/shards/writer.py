"""Writes one shard: a plain USTAR tar that webdataset reads, its index, and the sidecar that commits it."""

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
from vlm2vec.shards.index import IndexRow, write_index
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.schema import IMAGE_MEMBER_PREFIX, JSON_MEMBER, NEGATIVE, SIDES, fast_hash, item_hash, sample_key
from vlm2vec.shards.sidecar import Sidecar, UnusableImage, UnusableRow
from vlm2vec.shards.tar import end_of_archive, member

# Samples with photographs are larger, and go to the file without being copied here first.
_BUFFER_BYTES = 1 << 16
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class StoredImage:
    """A picture ready to be written: its bytes are copied as they are, never re-encoded.

    Attributes:
        data: the undecoded bytes.
        header: format and size.
        hash: `schema.fast_hash` of the bytes.
        path: where the picture came from, for people who trace a sample back.
    """

    data: bytes
    header: ImageHeader
    hash: int
    path: str


@dataclass(frozen=True)
class StoredItem:
    """One side of a row, ready to be written; "" and None stand for no text and no picture."""

    text: str
    image: StoredImage | None = None


class ShardWriter:
    """Collects a shard's samples in a temporary tar; `commit` gives tar, index and sidecar their names, in this order.

    The sidecar is the commit mark: where it exists, the other two are complete. Leaving the `with` block without
    `commit` leaves nothing. The same samples give the same bytes.
    """

    def __init__(self, folder: Path, name: str, subset: str) -> None:
        self._folder, self._name, self._subset = folder, name, subset
        folder.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_for(folder / f"{name}.tar")
        self._tar = open(self._temporary, "wb", _BUFFER_BYTES)  # noqa: SIM115 - closed by commit or __exit__
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._rows: list[IndexRow] = []
        self._image_hashes: set[int] = set()
        self._image_bytes = self._duplicate_image_bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def add(self, row: int, sides: Mapping[str, StoredItem]) -> None:
        """Appends the sample of a source row; `sides` by name, the negative only where there is one."""
        key = sample_key(self._subset, row)
        pieces = [*member(f"{key}.{JSON_MEMBER}", self._record(row, sides))]
        for side, item in sides.items():
            if item.image is not None:
                name = f"{key}.{IMAGE_MEMBER_PREFIX[side]}.{item.image.header.extension}"
                pieces += member(name, item.image.data)
                self._count(item.image)
        span = b"".join(pieces)
        self._rows.append(_index_row(row, self._size, span, sides))
        self._write(span)

    def _write(self, content: bytes) -> None:
        self._tar.write(content)
        self._sha256.update(content)
        self._size += len(content)

    def _record(self, row: int, sides: Mapping[str, StoredItem]) -> bytes:
        record: dict[str, Any] = {"subset": self._subset, "row": row}
        for side in SIDES:
            item = sides.get(side)
            record[side] = None if item is None else {"text": item.text, "image": _image_record(item.image)}
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
            rows: the range of source rows that it covers.
            skipped: rows of the range that were not added, by reason.
            unusable_images: the pictures that some of them were left out for, noted in the sidecar.
            unusable_rows: the rows that were left out for what they hold, noted in the sidecar.
        """
        self._write(end_of_archive(self._size))
        self._tar.close()
        publish(self._temporary, self._folder / f"{self._name}.tar")
        record = ShardRecord(
            name=self._name,
            bytes=self._size,
            sha256=self._sha256.hexdigest(),
            index_sha256=write_index(self._folder / f"{self._name}.parquet", self._rows),
            num_samples=len(self._rows),
            rows=rows,
            skipped=dict(sorted(skipped.items())),
            unique_images=len(self._image_hashes),
            image_bytes=self._image_bytes,
            duplicate_image_bytes=self._duplicate_image_bytes,
        )
        Sidecar(record, tuple(unusable_images), tuple(unusable_rows)).write(self._folder / f"{self._name}.json")
        return record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # after an error nothing is left to lose; after commit it is closed already
            self._tar.close()
        self._temporary.unlink(missing_ok=True)


def _index_row(row: int, offset: int, span: bytes, sides: Mapping[str, StoredItem]) -> IndexRow:
    values: list[int | bool] = [row, offset, len(span), fast_hash(span)]
    for side in SIDES:
        item = sides.get(side)
        if item is None:
            values += (0, 0, 0, 0, 0)
        elif item.image is None:
            values += (len(item.text), 0, 0, item_hash(item.text, None), 0)
        else:
            header, digest = item.image.header, item.image.hash
            values += (len(item.text), header.width, header.height, item_hash(item.text, digest), digest)
    return (*values, NEGATIVE in sides)


def _image_record(image: StoredImage | None) -> dict[str, Any] | None:
    if image is None:
        return None
    return {"path": image.path, "width": image.header.width, "height": image.header.height}
