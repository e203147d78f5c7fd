"""Checks parquet tables from others: text columns of any Arrow type, duplicate columns, unused columns with content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm2vec.errors import InputError

# Errors that pyarrow raises for damaged files; ValueError is for text that is not UTF-8.
UNREADABLE_TABLE = (OSError, pa.ArrowException, ValueError, MemoryError, OverflowError)

_INSTRUCTIONS = re.compile(r"((qry|query|pos|tgt|target|neg|cand)_)?(inst|instruction|instructions|prompt)")
_MEDIA = re.compile(r".*(video|frames?|audio|clip)(_.*)?")
_NEGATIVES = re.compile(r"neg_.*")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text: strings, bytes read as UTF-8, dictionaries of those, or only nulls."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    return any(getattr(pa.types, f"is_{check}")(kind) for check in checks)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    checks = ("list", "large_list", "list_view", "large_list_view", "fixed_size_list")
    return any(getattr(pa.types, f"is_{check}")(kind) for check in checks)


def texts(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Converts a text column (see `is_text`) to large_string, with "" for null.

    Raises:
        pyarrow.ArrowInvalid: The column holds bytes that are not UTF-8.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pc.fill_null(column.cast(pa.large_string()), "")


def check_names(path: Path, schema: pa.Schema, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Refuses a table with a missing or duplicated column.

    Raises:
        InputError: A column is missing or duplicated; the message names file and column.
    """
    for name in required:
        if name not in schema.names:
            raise InputError(f"{path}: no column {name}; the columns are {', '.join(dict.fromkeys(schema.names))}")
    for name in (*required, *optional):
        if schema.names.count(name) > 1:
            raise InputError(f"{path}: column {name} occurs {schema.names.count(name)} times; keep one of them")


def num_rows(file: pq.ParquetFile) -> int:
    """Number of rows of a table.

    Raises:
        ValueError: The file's metadata and its row groups disagree, so that a reader might lose rows.
    """
    stated, metadata = file.metadata.num_rows, file.metadata
    held = sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    if stated != held:
        raise ValueError(f"its metadata states {stated} rows, its row groups have {held}")
    return int(stated)


def unused_columns(path: Path, file: pq.ParquetFile, used: Sequence[str]) -> tuple[str, ...]:
    """Names of columns that nothing reads; refuses such a column if it holds content that a model needs.

    Later layouts of the benchmark have separate columns for instructions, videos and further candidates.

    Raises:
        InputError: Such a column has content; the message says what would be lost.
    """
    unused = tuple(name for name in dict.fromkeys(file.schema_arrow.names) if name not in used)
    for name in unused:
        lost = _lost(name.lower())
        if lost and _has_content(file, name):
            raise InputError(
                f"{path}: column {name} holds {lost}, which would be lost (a later layout?); move its content to "
                f"{', '.join(used)}, or remove the column"
            )
    return unused


def _lost(name: str) -> str | None:
    if _INSTRUCTIONS.fullmatch(name):
        return "instructions that are not part of the texts"
    if _MEDIA.fullmatch(name):
        return "videos or sounds"
    if _NEGATIVES.fullmatch(name) and not name.endswith("_id"):
        return "negatives"
    return None


def _has_content(file: pq.ParquetFile, name: str) -> bool:
    if file.schema_arrow.names.count(name) > 1:  # a duplicated column cannot be read by its name
        return True
    return any(
        _says_something(value)
        for batch in file.iter_batches(columns=[name], use_threads=False)
        for value in batch.column(0).to_pylist()
    )


def _says_something(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(map(_says_something, value))
    return bool(value.strip() if isinstance(value, (str, bytes)) else value is not None)
