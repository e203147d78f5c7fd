"""Reads and writes the index of a shard: one row per sample, to plan batches and read any sample with one `pread`.

Version 2 has one column per number. Version 3, for pairs with several hard negatives or items with several images, has
lists (`schema.INDEX_SCHEMAS`). In memory both have the same form (`vlm2vec.shards.columns`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm2vec.errors import InputError
from vlm2vec.files import committed
from vlm2vec.formats.tables import UNREADABLE_TABLE, num_rows
from vlm2vec.shards.columns import Array, refuse_where, starts_of
from vlm2vec.shards.entry import IndexEntry, ItemEntry
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.schema import INDEX_SCHEMAS, NEGATIVE, PLAIN, POSITIVE, QUERY, SIDES, Version

# Lower bound on the bytes that an item or image, which a list's entry describes, takes in the tar.
_MIN_ENTRY_BYTES = 8


def version_of(entries: Sequence[IndexEntry]) -> Version:
    """Index version that these rows need."""
    return max((entry.schema_version for entry in entries), default=PLAIN)


def write_index(path: Path, entries: Sequence[IndexEntry]) -> str:
    """Writes the rows as parquet; the file appears only when complete, and the same rows give the same bytes.

    Args:
        path: File to write.
        entries: The rows, with the images' hashes.

    Returns:
        SHA-256 of the file.
    """
    version = version_of(entries)
    schema, row = INDEX_SCHEMAS[version], _plain_row if version == PLAIN else _list_row
    columns = zip(*map(row, entries), strict=True) if entries else ([] for _ in schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), buffer)
    content = buffer.getvalue()
    with committed(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _span(entry: IndexEntry) -> tuple[int, ...]:
    return entry.row, entry.offset, entry.size, entry.checksum


def _plain_row(entry: IndexEntry) -> tuple[Any, ...]:
    """Values in the order of version 2's columns."""
    values: list[Any] = [*_span(entry)]
    for item in (entry.query, entry.positive, *(entry.negatives or (ItemEntry(0, 0),))):
        (width, height), image_hash = (item.sizes[0], (item.image_hashes or (0,))[0]) if item.sizes else ((0, 0), 0)
        values += (item.text_length, width, height, item.hash, image_hash)
    return (*values, bool(entry.negatives))


def _list_row(entry: IndexEntry) -> tuple[Any, ...]:
    """Values in the order of version 3's columns."""
    values: list[Any] = [*_span(entry)]
    for item in (entry.query, entry.positive):
        values += (item.text_length, item.hash, *_image_lists(item))
    values += ([item.text_length for item in entry.negatives], [item.hash for item in entry.negatives])
    images = [_image_lists(item) for item in entry.negatives]
    return (*values, *(list(column) for column in zip(*images, strict=True))) if images else (*values, [], [], [])


def _image_lists(item: ItemEntry) -> tuple[list[int], list[int], list[int]]:
    return [width for width, _ in item.sizes], [height for _, height in item.sizes], list(item.image_hashes or ())


def read_index(path: Path, record: ShardRecord, image_hashes: bool = False) -> dict[str, Array]:
    """Reads an index file; see `parse_index`.

    Raises:
        InputError: The file is missing; or see `parse_index`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the shard's index ({error.strerror}); convert again") from error
    return parse_index(content, str(path), record, image_hashes)


def parse_index(content: bytes, path: str, record: ShardRecord, image_hashes: bool = False) -> dict[str, Array]:
    """Parses an index into its form in memory (`vlm2vec.shards.columns`).

    Args:
        content: Content of the whole file.
        path: Name of the file in messages.
        record: The shard in the manifest, against whose checksum the content is checked.
        image_hashes: Load the images' hashes too. They are for statistics; training does not need them.

    Raises:
        InputError: The content is not what the manifest names, is damaged, or has unexpected columns.
    """
    if hashlib.sha256(content).hexdigest() != record.index_sha256:
        raise InputError(f"{path}: not the index that the manifest names (sha256); copy it again or convert again")
    schema = INDEX_SCHEMAS[record.index_version]
    names = [name for name in schema.names if image_hashes or not name.endswith(("_image_hash", "_image_hashes"))]
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            if not file.schema_arrow.equals(schema):
                raise InputError(f"{path}: the columns are not this version's; convert again")
            found = num_rows(file)  # checked before anything of that size is allocated
            if found != record.num_samples:
                raise InputError(
                    f"{path}: has {found} samples, the manifest states {record.num_samples}; convert again"
                )
            _refuse_long_lists(file, record)
            table = file.read(names, use_threads=False)
            return _of_plain(table, path) if record.index_version == PLAIN else dict(_of_lists(table))
    except UNREADABLE_TABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot read the shard's index ({reason}); convert again") from error


def _refuse_long_lists(file: pq.ParquetFile, record: ShardRecord) -> None:
    """Refuses lists that are too long: a few compressed bytes can decompress to a billion entries.

    Raises:
        ValueError: There are more entries than fit into the tar.
    """
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    for column in range(file.metadata.num_columns):
        values = sum(group.column(column).num_values for group in groups)
        if values > record.num_samples + record.bytes // _MIN_ENTRY_BYTES:
            raise ValueError(f"a column has {values} entries, too many for a tar of {record.bytes} bytes")


def _of_plain(table: pa.Table, path: str) -> dict[str, Array]:
    """Converts version 2's columns.

    Raises:
        InputError: There is a value for an image or hard negative that does not exist.
    """
    plain = {name: np.asarray(table.column(name).to_numpy()) for name in table.column_names}
    columns = {name: plain[name] for name in ("row", "offset", "size", "checksum")}
    present = plain["has_negative"]
    for side in SIDES:
        width, height, length = (plain[f"{side}_{name}"] for name in ("width", "height", "text_length"))
        has_image = (width != 0) | (height != 0)
        if side == NEGATIVE:
            wrong = ~present & (has_image | (length != 0)) | present & ~has_image & (length == 0)
            refuse_where(wrong, "has_negative does not match the negative's sizes", path)
            refuse_where(~present & (plain[f"{side}_hash"] != 0), "negative_hash is set without a negative", path)
            columns["negative_starts"] = starts_of(present)
        chosen = present if side == NEGATIVE else slice(None)
        columns[f"{side}_text_length"] = length[chosen]
        columns[f"{side}_hash"] = plain[f"{side}_hash"][chosen]
        columns[f"{side}_image_starts"] = starts_of(has_image[chosen])
        columns[f"{side}_widths"], columns[f"{side}_heights"] = width[has_image], height[has_image]
        hashes = plain.get(f"{side}_image_hash")
        if hashes is not None:
            refuse_where(~has_image & (hashes != 0), f"{side}_image_hash is set without an image", path)
            columns[f"{side}_image_hashes"] = hashes[has_image]
    return columns


def _of_lists(table: pa.Table) -> Iterator[tuple[str, Array]]:
    """Converts version 3's columns.

    Raises:
        ValueError: Lists that must have equal lengths do not.
    """
    for name in ("row", "offset", "size", "checksum"):
        yield name, _numbers(table.column(name))
    counts, lengths = _flat(table.column(f"{NEGATIVE}_text_lengths"))
    same, hashes = _flat(table.column(f"{NEGATIVE}_hashes"))
    _require_same(f"{NEGATIVE}_hashes", counts, same)
    yield "negative_starts", starts_of(counts)
    items = {side: (table.column(f"{side}_text_length"), table.column(f"{side}_hash")) for side in (QUERY, POSITIVE)}
    for side, (length, item_hash) in {**items, NEGATIVE: (lengths, hashes)}.items():
        yield f"{side}_text_length", _numbers(length)
        yield f"{side}_hash", _numbers(item_hash)
        images: Array | None = None
        for name in ("widths", "heights", "image_hashes"):
            if f"{side}_{name}" not in table.column_names:
                continue
            column = table.column(f"{side}_{name}")
            if side == NEGATIVE:
                same, column = _flat(column)
                _require_same(f"{side}_{name}", counts, same)
            own, values = _flat(column)
            if images is None:
                images = own
                yield f"{side}_image_starts", starts_of(images)
            _require_same(f"{side}_{name}", images, own)
            yield f"{side}_{name}", _numbers(values)


def _flat(column: pa.ChunkedArray) -> tuple[Array, pa.ChunkedArray]:
    """Lengths of a column's lists, and their entries concatenated."""
    return _numbers(pc.list_value_length(column)), pc.list_flatten(column)


def _numbers(column: pa.ChunkedArray) -> Array:
    if column.null_count:
        raise ValueError("missing values")
    return np.asarray(column.to_numpy())


def _require_same(name: str, counts: Array, own: Array) -> None:
    if not np.array_equal(counts, own):
        raise ValueError(f"the lists of {name} differ in length from those of other columns")
