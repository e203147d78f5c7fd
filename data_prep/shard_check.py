"""Checks one shard: its files against the manifest's record, and each sample against its row of the index."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.sniff import sniff_header
from vlm2vec.errors import InputError
from vlm2vec.images.decode import ImageHeader, check_image
from vlm2vec.messages.words import counted
from vlm2vec.shards.columns import Columns, entry_at
from vlm2vec.shards.entry import IndexEntry, ItemEntry
from vlm2vec.shards.index import read_index
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.parsing import stated_images, stated_negatives
from vlm2vec.shards.schema import (
    JSON_MEMBER,
    NEGATIVE,
    POSITIVE,
    QUERY,
    content_hash,
    fast_hash,
    image_members,
    sample_key,
)
from vlm2vec.shards.sidecar import FINGERPRINT, UNUSABLE_IMAGES, UNUSABLE_ROWS

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardCheck:
    """One shard to check; `decode` also decodes its images."""

    root: Path
    subset: str
    number: int
    record: ShardRecord
    decode: bool

    def path(self, suffix: str) -> Path:
        """One of the shard's three files."""
        return self.root / self.subset / f"{self.record.name}{suffix}"


def broken_parts(check: ShardCheck) -> list[str]:
    """The problems of a shard, one line each; empty if it is intact."""
    problems = [*_sidecar_problems(check)]
    columns: Columns | None = None
    try:
        record = check.record
        columns = read_index(check.path(".parquet"), record, image_hashes=True)
    except InputError as error:
        problems.append(str(error))
    try:
        problems += _tar_problems(check, columns)
    except OSError as error:
        problems.append(f"{check.path('.tar')}: cannot read it ({error.strerror})")
    return problems


def _sidecar_problems(check: ShardCheck) -> Iterator[str]:
    path = check.path(".json")
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        sidecar.pop(UNUSABLE_IMAGES)
        for name in (UNUSABLE_ROWS, FINGERPRINT):  # earlier versions had none
            sidecar.pop(name, None)
        same = sidecar == json.loads(json.dumps(check.record.content()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        yield f"{path}: cannot read it ({type(error).__name__})"
        return
    if not same:
        yield f"{path}: differs from the manifest"


def _tar_problems(check: ShardCheck, columns: Columns | None) -> Iterator[str]:
    """Reads the tar once; checks the checksum of the whole and each sample at the offset that the index gives."""
    path, record = check.path(".tar"), check.record
    size = path.stat().st_size
    if size != record.bytes:
        yield f"{path}: {size} bytes, the manifest says {record.bytes}"
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        if columns is not None:
            yield from _sample_problems(check, columns, file, digest)
        rest_is_zero = True
        while block := file.read(_READ_BYTES):
            digest.update(block)
            rest_is_zero = rest_is_zero and not block.strip(b"\0")
    if digest.hexdigest() != record.sha256:
        yield f"{path}: its content has changed (sha256 differs from the manifest)"
    if columns is not None and not rest_is_zero:
        yield f"{path}: there is data after the last sample"


def _sample_problems(check: ShardCheck, columns: Columns, file: BinaryIO, digest: Any) -> Iterator[str]:
    expected_offset = 0
    for position in range(check.record.num_samples):
        entry = entry_at(columns, position)
        key = sample_key(check.subset, entry.row)
        if entry.offset != expected_offset:
            begins = f"sample {key} begins at {entry.offset} according to the index"
            yield f"{check.path('.parquet')}: {begins}, not at {expected_offset}"
            return  # nothing after it can be compared
        if not 0 < entry.size <= check.record.bytes - expected_offset:
            yield f"{check.path('.parquet')}: sample {key} has {entry.size} bytes according to the index"
            return
        span = file.read(entry.size)
        expected_offset += entry.size
        digest.update(span)
        problem = _sample_problem(check, key, entry, span)
        if problem:
            yield f"{check.path('.tar')}: sample {key}: {problem}"


def _sample_problem(check: ShardCheck, key: str, entry: IndexEntry, span: bytes) -> str | None:
    if fast_hash(span) != entry.checksum:
        return "damaged (checksum)"
    try:
        members = dict(_members(span))
        if any(not name.startswith(f"{key}.") for name in members):
            return f"has members of another key ({', '.join(members)})"
        described = _described(members, key, entry.row, check)
    except InputError as error:
        return str(error)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, tarfile.TarError) as error:
        return f"not a sample ({type(error).__name__}: {error})"
    stated = list(entry.items())
    if len(stated) != len(described):
        return f"has {counted(len(described) - 2, 'hard negative')}, {len(stated) - 2} by the index"
    wrong = [
        f"{name.replace(' ', '_')}_{column}"
        for (name, expected), found in zip(stated, described, strict=True)
        for column in found.differences(expected)
    ]
    return f"differs from the index in {', '.join(wrong)}" if wrong else None


def _members(span: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member. The standard library reads the headers, and checks their checksums."""
    offset = 0
    while offset < len(span):
        info = tarfile.TarInfo.frombuf(span[offset : offset + tarfile.BLOCKSIZE], "ascii", "strict")
        if not info.isreg():
            raise ValueError(f"{info.name} is not a plain file")
        start = offset + tarfile.BLOCKSIZE
        yield info.name, span[start : start + info.size]
        offset = start + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _described(members: dict[str, bytes], key: str, row: int, check: ShardCheck) -> list[ItemEntry]:
    """The correct index entries of the sample's items, computed from the sample."""
    record = json.loads(members.pop(f"{key}.{JSON_MEMBER}"))
    if (record["subset"], record["row"]) != (check.subset, row):
        raise ValueError(f"is row {record['row']} of {record['subset']}")
    negatives = stated_negatives(record)
    items = [(QUERY, 0, record[QUERY]), (POSITIVE, 0, record[POSITIVE])]
    items += [(NEGATIVE, number, item) for number, item in enumerate(negatives)]
    described = []
    for side, number, item in items:
        stated = stated_images(item)
        names = image_members(side, number, len(negatives), len(stated))
        images = [_image(members, f"{key}.{name}", image, check) for name, image in zip(names, stated, strict=True)]
        described.append(
            ItemEntry(
                len(item["text"]),
                content_hash(item["text"], *(data for data, _ in images)),
                tuple((header.width, header.height) for _, header in images),
                tuple(fast_hash(data) for data, _ in images),
            )
        )
    if members:
        raise ValueError(f"images that belong to no item ({', '.join(members)})")
    return described


def _image(
    members: dict[str, bytes], stem: str, stated: Mapping[str, Any], check: ShardCheck
) -> tuple[bytes, ImageHeader]:
    """Removes the image with this name, whatever its extension, from the members."""
    names = [name for name in members if name.rpartition(".")[0] == stem]
    if len(names) != 1:
        raise ValueError(f"{len(names)} images {stem}")
    data = members.pop(names[0])
    header = (check_image if check.decode else sniff_header)(data, names[0])
    size = (stated["width"], stated["height"])
    if names[0] != f"{stem}.{header.extension}" or size != (header.width, header.height):
        raise ValueError(f"{names[0]} is a {header.extension} of {header.width} x {header.height} pixels")
    return data, header
