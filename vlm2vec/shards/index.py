"""The index beside each tar: one row a sample, enough to plan batches and to read any sample with one `pread`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlm2vec.errors import InputError
from vlm2vec.images import ImageHeader
from vlm2vec.shards.schema import INDEX_SCHEMA, NEGATIVE, SIDES, Item, content_hash

Columns = Mapping[str, npt.NDArray[Any]]


def index_entry(
    row: int, items: Mapping[str, Item], headers: Mapping[str, ImageHeader], offset: int, size: int, crc32: int
) -> dict[str, int | bool]:
    """One sample's index row; `items` by side, `headers` for the sides that have a picture."""
    entry: dict[str, int | bool] = {"row": row, "offset": offset, "size": size, "crc32": crc32}
    for side in SIDES:
        item, header = items.get(side), headers.get(side)
        entry[f"{side}_text_length"] = len(item.text) if item else 0
        entry[f"{side}_width"] = header.width if header else 0
        entry[f"{side}_height"] = header.height if header else 0
        entry[f"{side}_hash"] = content_hash(item.text, item.image) if item else 0
    entry["has_negative"] = NEGATIVE in items
    return entry


def write_index(path: Path, entries: Sequence[Mapping[str, int | bool]]) -> None:
    """Writes the entries as parquet; the same entries give the same bytes."""
    pq.write_table(pa.Table.from_pylist(list(entries), schema=INDEX_SCHEMA), path)


def read_index(path: Path, num_samples: int) -> dict[str, npt.NDArray[Any]]:
    """Reads an index as numpy columns.

    Raises:
        InputError: missing, damaged, other columns than expected, or another number of samples than `num_samples`.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot read the shard's index ({reason}); convert again") from error
    if not table.schema.equals(INDEX_SCHEMA):
        raise InputError(f"{path}: not this version's index columns; convert again")
    if table.num_rows != num_samples:
        raise InputError(f"{path}: {table.num_rows} samples, the manifest says {num_samples}; convert again")
    return {name: np.asarray(table.column(name).to_numpy()) for name in INDEX_SCHEMA.names}
