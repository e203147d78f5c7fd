"""Reads MMEB-train's folders: which tables belong to a subset and a split, and their rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlm2vec.errors import InputError
from vlm2vec.files import sha256_of
from vlm2vec.shards.schema import SUBSET_NAME

REQUIRED_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
OPTIONAL_COLUMNS = ("neg_text", "neg_image_path")  # in some subsets only
ALL_SUBSETS = "all"

_BATCH_ROWS = 1024
_DOWNLOAD_HINT = "download the data set first and give its folder"


@dataclass(frozen=True)
class SourceTable:
    """One parquet file of a subset.

    Attributes:
        path: the file.
        first_row: number of its first row, counted over the subset's files.
        num_rows: rows it has.
        columns: those of the known columns that it has.
    """

    path: Path
    first_row: int
    num_rows: int
    columns: tuple[str, ...]

    def sha256(self) -> str:
        """The file's checksum."""
        return sha256_of(self.path)

    def rows(self, start: int, end: int) -> Iterator[tuple[int, dict[str, str]]]:
        """Rows start <= number < end, numbered over the subset's files, a null read as ""; the rest is not decoded.

        Raises:
            InputError: the file is damaged there.
        """
        number = self.first_row
        try:
            with pq.ParquetFile(self.path) as file:
                for group in range(file.num_row_groups):
                    group_end = number + file.metadata.row_group(group).num_rows
                    if number < end and start < group_end:
                        yield from self._rows_of_group(file, group, number, start, end)
                    number = group_end
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.path, error) from error

    def _rows_of_group(
        self, file: pq.ParquetFile, group: int, number: int, start: int, end: int
    ) -> Iterator[tuple[int, dict[str, str]]]:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(self.columns)):
            for record in batch.to_pylist():
                if start <= number < end:
                    yield number, {name: value or "" for name, value in record.items()}
                number += 1


def subset_names(root: Path, asked_for: list[str], split: str) -> list[str]:
    """The subsets to convert; "all" stands for every folder that has tables of the split.

    Raises:
        InputError: no such folder, a name that cannot be a folder's, a subset given twice, nothing of this split.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; {_DOWNLOAD_HINT}")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    if asked_for == [ALL_SUBSETS]:
        names = [name for name in folders if SUBSET_NAME.fullmatch(name) and _split_files(root / name, split)]
        if not names:
            raise InputError(f"{root}: no subset has {split}-00000-of-*.parquet; is it MMEB-train's folder?")
        return names
    for name in asked_for:
        if not SUBSET_NAME.fullmatch(name):
            raise InputError(f"{name}: not a subset's name")
        if name not in folders:
            raise InputError(f"{root}: no subset {name}; there are {', '.join(folders) or 'none'}")
        if asked_for.count(name) > 1:
            raise InputError(f"{name}: subset given twice")
    return asked_for


def source_tables(root: Path, subset: str, split: str) -> list[SourceTable]:
    """A subset's tables of one split, in order; the older `train-*` files beside them are not mistaken for it.

    Raises:
        InputError: none there, parts missing or of two different sets, not parquet, a column missing or not text.
    """
    files = _split_files(root / subset, split)
    if not files:
        raise InputError(f"{root / subset}: no {split}-00000-of-*.parquet; is the split's name right?")
    totals = {total for _, total, _ in files}
    if len(totals) > 1 or [part for part, _, _ in files] != list(range(max(totals))):
        found = ", ".join(path.name for _, _, path in files)
        raise InputError(f"{root / subset}: not one complete set of {split} files ({found}); download it again")
    tables: list[SourceTable] = []
    for _, _, path in files:
        tables.append(_opened(path, sum(table.num_rows for table in tables)))
    return tables


def _split_files(folder: Path, split: str) -> list[tuple[int, int, Path]]:
    """(part, of how many, path) of the split's files, in order."""
    pattern = re.compile(re.escape(split) + r"-(\d{5})-of-(\d{5})\.parquet")
    found = [(pattern.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), int(match[2]), path) for match, path in found if match)


def _opened(path: Path, first_row: int) -> SourceTable:
    try:
        with pq.ParquetFile(path) as file:
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    missing = [name for name in REQUIRED_COLUMNS if name not in schema.names]
    if missing:
        raise InputError(f"{path}: no column {missing[0]}; it has {', '.join(schema.names)}")
    columns = tuple(name for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if name in schema.names)
    for name in columns:
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise InputError(f"{path}: column {name} is {kind}, not text")
    return SourceTable(path, first_row, num_rows, columns)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot read the table ({' '.join(str(error).split())}); download it again")
