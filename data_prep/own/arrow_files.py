"""Reads parquet files, and the Arrow files of `datasets.save_to_disk`, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.own.columns import IMAGE_FIELDS, choose_columns
from data_prep.source import file_stamp
from vlm2vec.errors import InputError
from vlm2vec.files import LFS_REMEDY, is_lfs_pointer_file
from vlm2vec.formats.tables import UNREADABLE_TABLE, is_list, is_text, num_rows

# Rows in memory at a time: each may contain several images of several megabytes.
_BATCH_ROWS = 64
_READ_BYTES = 1 << 20

ArrowRow = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class ArrowFile:
    """A parquet or Arrow file.

    Attributes:
        path: The file.
        stamp: Its `file_stamp` when it was first opened.
        columns: All its column names.
        num_rows: Number of rows.
        chosen: The column of each field.
        labels: The class names of columns that contain class numbers (`datasets.ClassLabel`).
    """

    path: Path
    stamp: tuple[int, ...]
    columns: tuple[str, ...]
    num_rows: int
    chosen: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]

    def rows(self, start: int, end: int) -> Iterator[ArrowRow]:
        """Rows start <= number < end; each is a dictionary of the chosen columns' values.

        Raises:
            InputError: The file is damaged in these rows, or has changed since it was opened.
        """
        if file_stamp(self.path) != self.stamp:
            raise InputError(f"{self.path}: changed while it was read; run the same command again")
        with _readable(self.path):
            for first, batch in _batches(self.path, self.num_rows, list(self.chosen.values()), start):
                part = batch.slice(max(start - first, 0), max(end - max(start, first), 0))
                names = part.schema.names
                for number, values in enumerate(
                    zip(*(self._values(name, part.column(name)) for name in names), strict=True), max(start, first)
                ):
                    yield number, dict(zip(names, values, strict=True))
                if first + batch.num_rows >= end:
                    return

    def _values(self, name: str, column: pa.Array) -> list[Any]:
        values: list[Any] = column.to_pylist()
        if name not in self.labels:
            return values
        labels = self.labels[name]
        if any(value is not None and value >= len(labels) for value in values):
            raise ValueError(f"column {name} has a class beyond the {len(labels)} that are named")
        return [None if value is None or value < 0 else labels[value] for value in values]  # -1: no class


def open_arrow(path: Path, asked: Mapping[str, str] | None) -> ArrowFile:
    """Opens a file and chooses its columns.

    Raises:
        InputError: It cannot be read, has no rows, lacks a column, or a column contains neither text nor images.
    """
    with _readable(path):
        stamp = file_stamp(path)
        schema, rows = _shape(path)
        chosen = choose_columns(str(path), schema.names, asked)
        labels = {}
        for field, column in chosen.items():
            kind = schema.field(column).type
            if pa.types.is_integer(kind) and (names := _class_names(schema, column)):
                labels[column] = names
            elif not _holds(field, kind):
                wanted = "images (paths, bytes, {bytes, path})" if field in IMAGE_FIELDS else "text"
                raise InputError(f"{path}: column {column} is {kind}, not {wanted}")
    if not rows:
        raise InputError(f"{path}: no rows")
    return ArrowFile(path, stamp, tuple(dict.fromkeys(schema.names)), rows, chosen, labels)


def is_parquet(path: Path) -> bool:
    """Whether its name is that of a parquet file; otherwise it is an Arrow file."""
    return path.suffix.lower() == ".parquet"


def _holds(field: str, kind: pa.DataType) -> bool:
    """Whether a column's type fits the field. Lists are several images or several negatives."""
    if field in IMAGE_FIELDS and pa.types.is_struct(kind):
        names = {kind.field(number).name for number in range(kind.num_fields)}
        return names <= {"bytes", "path"}
    if is_list(kind):
        return _holds(field, kind.value_type)
    return is_text(kind)


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The class names of a column of numbers, if `datasets` stored them in the schema."""
    if b"huggingface" not in (schema.metadata or {}):
        return ()
    from datasets import ClassLabel, Features  # takes 1 s, and few tables have such a column

    feature = Features.from_arrow_schema(schema)[column]
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def _shape(path: Path) -> tuple[pa.Schema, int]:
    """Schema and number of rows."""
    if is_parquet(path):
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, num_rows(file)
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        return reader.schema, sum(batch.num_rows for batch in reader)


def _batches(path: Path, total: int, columns: list[str], start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches from the one with row `start` on, each with the number of its first row."""
    reader = _parquet_batches if is_parquet(path) else _ipc_batches
    first = 0
    for first, batch in reader(path, columns, start):
        if first + batch.num_rows > start:
            yield first, batch
        first += batch.num_rows
    if first != total:
        raise ValueError(f"it ends at row {first}, not {total}")


def _parquet_batches(path: Path, columns: list[str], start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of a parquet file. Row groups before `start` are not read, and large ones are read in parts."""
    with pq.ParquetFile(path, buffer_size=_READ_BYTES) as file:
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows > start:
                place = first
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                    yield place, batch
                    place += batch.num_rows
                if place != first + rows:
                    raise ValueError(f"row group {group} has {place - first} rows, not {rows}")
            first += rows


def _ipc_batches(path: Path, columns: list[str], start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        first = 0
        for batch in reader:
            for part in range(0, batch.num_rows, _BATCH_ROWS):
                yield first + part, batch.select(columns).slice(part, _BATCH_ROWS)
            first += batch.num_rows


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns pyarrow's exceptions about a damaged file into an InputError."""
    try:
        yield
    except UNREADABLE_TABLE as error:
        if is_lfs_pointer_file(path):
            raise InputError(f"{path}: {LFS_REMEDY}") from error
        raise InputError(f"{path}: cannot read the table ({' '.join(str(error).split())})") from error
