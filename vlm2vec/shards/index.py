"""The index beside each tar: one row a sample, enough to plan batches and to read any sample with one `pread`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlm2vec.errors import InputError
from vlm2vec.files import committed
from vlm2vec.formats.tables import UNREADABLE_TABLE, num_rows
from vlm2vec.images.decode import MAX_IMAGE_PIXELS
from vlm2vec.shards.manifest import ShardRecord
from vlm2vec.shards.schema import INDEX_SCHEMA, NEGATIVE, READING_COLUMNS, SIDES

Columns = Mapping[str, npt.NDArray[Any]]
IndexRow = tuple[int | bool, ...]  # in the order of INDEX_SCHEMA


def write_index(path: Path, rows: Sequence[IndexRow]) -> str:
    """Writes the rows as parquet, complete or not at all; the same rows give the same bytes.

    Returns:
        The file's sha256.
    """
    columns = zip(*rows, strict=True) if rows else ([] for _ in INDEX_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA), buffer)
    content = buffer.getvalue()
    with committed(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_index(
    path: Path, num_samples: int, sha256: str, names: Sequence[str] = READING_COLUMNS
) -> dict[str, npt.NDArray[Any]]:
    """Reads columns of an index file as numpy arrays; see `parse_index`.

    Raises:
        InputError: missing, or as `parse_index`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the shard's index ({error.strerror}); convert again") from error
    return parse_index(content, str(path), num_samples, sha256, names)


def parse_index(
    content: bytes, path: str, num_samples: int, sha256: str, names: Sequence[str] = READING_COLUMNS
) -> dict[str, npt.NDArray[Any]]:
    """Reads columns of an index as numpy arrays.

    Args:
        content: the whole file.
        path: what messages call it.
        num_samples: what the manifest says it holds.
        sha256: what the manifest says it is. Nothing else would find a wrong size or hash in it.
        names: the columns.

    Raises:
        InputError: not what the manifest says, damaged, or with other columns than expected.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{path}: not the index that the manifest names (sha256); copy it again or convert again")
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            if not file.schema_arrow.equals(INDEX_SCHEMA):
                raise InputError(f"{path}: not this version's index columns; convert again")
            found = num_rows(file)  # before anything of that size is allocated
            if found != num_samples:
                raise InputError(f"{path}: {found} samples, the manifest says {num_samples}; convert again")
            table = file.read(list(names), use_threads=False)
    except UNREADABLE_TABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot read the shard's index ({reason}); convert again") from error
    return {name: np.asarray(table.column(name).to_numpy()) for name in names}


def check_columns(columns: Columns, path: str, record: ShardRecord) -> None:
    """Refuses an index that cannot be that of its tar, before anybody seeks, allocates or plans by its values.

    Args:
        columns: at least those of `READING_COLUMNS`.
        path: what messages call the index.
        record: the shard, as the manifest describes it.

    Raises:
        InputError: a value is impossible; the message names the column and the entry.
    """
    for problem, wrong in _impossible(columns, record):
        if wrong.any():
            entry = int(np.argmax(wrong))
            raise InputError(f"{path}: entry {entry}: {problem}; convert again")


def _impossible(columns: Columns, record: ShardRecord) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """What may be wrong, and in which entries it is; later ones rely on earlier ones."""
    row, offset, size = columns["row"], columns["offset"], columns["size"]
    first, end = record.rows
    yield f"row is not one of {first} to {end - 1}", (row < first) | (row >= end)
    yield "row does not follow the one before", np.diff(row, prepend=first - 1) < 1
    yield f"size is not that of a sample in {record.bytes} bytes", (size < 1) | (size > record.bytes)
    yield f"offset is not one in {record.bytes} bytes", (offset < 0) | (offset > record.bytes - size)
    yield "offset is not where the sample before ends", offset != np.concatenate([[0], (offset + size)[:-1]])
    for side in SIDES:
        length, width, height = (
            columns[f"{side}_{name}"].astype(np.int64) for name in ("text_length", "width", "height")
        )
        yield f"{side}_text_length is not that of a text in the sample", (length < 0) | (length > size)
        yield f"{side}_width or {side}_height is negative", (width < 0) | (height < 0)
        yield f"{side}_width or {side}_height is zero", (width > 0) != (height > 0)
        yield f"{side}_width x {side}_height are too many pixels", width * height > MAX_IMAGE_PIXELS
        empty = (length == 0) & (width == 0)
        if side == NEGATIVE:
            yield "has_negative does not fit the negative's sizes", columns["has_negative"] == empty
            yield "negative_hash is that of no item", empty & (columns[f"{side}_hash"] != 0)
        else:
            yield f"the {side} is empty", empty
