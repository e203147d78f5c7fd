"""Writes one shard: a plain USTAR tar through webdataset, its index, and the sidecar that commits it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import webdataset

from vlm2vec.files import committed, publish, sha256_of, temporary_for
from vlm2vec.images import ImageHeader
from vlm2vec.shards.index import index_entry, write_index
from vlm2vec.shards.manifest import ShardRecord, write_json
from vlm2vec.shards.schema import IMAGE_MEMBER_PREFIX, JSON_MEMBER, SIDES, Item, content_hash, sample_key


@dataclass(frozen=True)
class StoredItem:
    """One side of a row, ready to be written: picture bytes are copied as they are, never re-encoded.

    Attributes:
        item: text and picture bytes.
        header: the picture's format and size; None without a picture.
        image_path: where the picture came from, for people who trace a sample back; "" without a picture.
    """

    item: Item
    header: ImageHeader | None = None
    image_path: str = ""


class ShardWriter:
    """Collects a shard's samples in a temporary tar; `commit` gives tar, index and sidecar their names, in this order.

    The sidecar is the commit mark: where it exists, the other two are complete. Leaving the `with` block without
    `commit` leaves nothing. The same samples give the same bytes.
    """

    def __init__(self, folder: Path, name: str, subset: str) -> None:
        self._folder, self._name, self._subset = folder, name, subset
        folder.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_for(folder / f"{name}.tar")
        self._stream = open(self._temporary, "wb")  # noqa: SIM115 - closed by commit, at the latest by __exit__
        # An integer mtime keeps tarfile from adding an extended header to every member.
        self._tar = webdataset.TarWriter(self._stream, user="", group="", mode=0o444, mtime=0, encoder=False)
        self._entries: list[dict[str, int | bool]] = []
        self._image_hashes: set[int] = set()
        self._duplicate_image_bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def add(self, row: int, sides: Mapping[str, StoredItem]) -> None:
        """Appends the sample of a source row; `sides` by name, the negative only where there is one."""
        members: dict[str, Any] = {"__key__": sample_key(self._subset, row), JSON_MEMBER: self._record(row, sides)}
        for side, stored in sides.items():
            if stored.item.image is not None and stored.header is not None:
                members[f"{IMAGE_MEMBER_PREFIX[side]}.{stored.header.extension}"] = stored.item.image
                self._count_image(stored.item.image)
        offset = self._tar.tarstream.offset
        self._tar.write(members)
        self._entries.append(
            index_entry(
                row,
                items={side: stored.item for side, stored in sides.items()},
                headers={side: stored.header for side, stored in sides.items() if stored.header},
                offset=offset,
                size=self._tar.tarstream.offset - offset,
                crc32=0,  # known once the tar is on disk
            )
        )

    def _record(self, row: int, sides: Mapping[str, StoredItem]) -> bytes:
        record: dict[str, Any] = {"subset": self._subset, "row": row}
        for side in SIDES:
            stored = sides.get(side)
            record[side] = None if stored is None else {"text": stored.item.text, "image": _image_record(stored)}
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()

    def _count_image(self, image: bytes) -> None:
        digest = content_hash("", image)
        if digest in self._image_hashes:
            self._duplicate_image_bytes += len(image)
        self._image_hashes.add(digest)

    def commit(self, rows: tuple[int, int], skipped: Mapping[str, int]) -> ShardRecord:
        """Finishes the shard.

        Args:
            rows: the range of source rows that it covers.
            skipped: rows of the range that were not added, by reason.
        """
        self._tar.close()
        self._stream.close()
        self._fill_in_checksums()
        record = ShardRecord(
            name=self._name,
            bytes=self._temporary.stat().st_size,
            sha256=sha256_of(self._temporary),
            num_samples=len(self._entries),
            rows=rows,
            skipped=dict(sorted(skipped.items())),
            unique_images=len(self._image_hashes),
            duplicate_image_bytes=self._duplicate_image_bytes,
        )
        publish(self._temporary, self._folder / f"{self._name}.tar")
        with committed(self._folder / f"{self._name}.parquet") as temporary:
            write_index(temporary, self._entries)
        write_json(self._folder / f"{self._name}.json", asdict(record))
        return record

    def _fill_in_checksums(self) -> None:
        """Computes each span's checksum from the file itself, so that the index vouches for what was written."""
        with open(self._temporary, "rb") as tar:
            for entry in self._entries:
                tar.seek(entry["offset"])
                entry["crc32"] = zlib.crc32(tar.read(entry["size"]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # after an error nothing is left to lose; after commit both are closed already
            self._tar.close()
            self._stream.close()
        self._temporary.unlink(missing_ok=True)


def _image_record(stored: StoredItem) -> dict[str, Any] | None:
    if stored.header is None:
        return None
    return {"path": stored.image_path, "width": stored.header.width, "height": stored.header.height}
