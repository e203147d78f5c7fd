"""The index beside each tar: one row a sample, enough to plan batches and to read any sample with one `pread`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlm2vec.errors import InputError
from vlm2vec.files import committed
from vlm2vec.shards.schema import INDEX_SCHEMA, READING_COLUMNS

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
        table = pq.read_table(pa.BufferReader(content), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot read the shard's index ({reason}); convert again") from error
    if not table.schema.equals(INDEX_SCHEMA):
        raise InputError(f"{path}: not this version's index columns; convert again")
    if table.num_rows != num_samples:
        raise InputError(f"{path}: {table.num_rows} samples, the manifest says {num_samples}; convert again")
    return {name: np.asarray(table.column(name).to_numpy()) for name in names}
