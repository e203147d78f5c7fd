"""Reads MMEB-train's folders: which tables belong to a subset and a split, and their rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.own.columns import MMEB_NAMES
from data_prep.own.pairs import unmarked_pair
from data_prep.rows import RawPair, RowError, SourceRow, Table, distinct
from vlm2vec.errors import InputError
from vlm2vec.files import LFS_REMEDY, is_lfs_pointer_file, sha256_of
from vlm2vec.formats.tables import UNREADABLE_TABLE, check_names, is_list, is_text, num_rows, texts, unused_columns
from vlm2vec.shards.schema import SUBSET_NAME

REQUIRED_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
OPTIONAL_COLUMNS = ("neg_text", "neg_image_path")  # only some subsets have them
# How deeply lists may be nested: several images of an item, or several hard negatives, each with a list of images.
LISTS_IN_LISTS = {"qry_image_path": 1, "pos_image_path": 1, "neg_text": 1, "neg_image_path": 2}
LISTS_ALLOWED = ("", " or a list of texts", " or a list of texts or of such lists")
ALL_SUBSETS = "all"
DEFAULT_SPLIT = "original"

_BATCH_ROWS = 4096
DOWNLOAD_HINT = "download the dataset first (data_prep.download) and pass its folder"


@dataclass(frozen=True)
class SourceData:
    """MMEB-train's data to convert.

    Attributes:
        dataset_dir: MMEB-train's folder.
        image_dir: The folder that the tables' image paths are relative to. Images that are not unpacked there are
            read from its images_zip/<Subset>.zip.
        subsets: The subsets' names, or ["all"].
        allow_links: Whether to follow links that lead out of `image_dir`.
    """

    dataset_dir: Path
    image_dir: Path
    subsets: Sequence[str]
    allow_links: bool = False

    def names(self, split: str) -> list[str]:
        """See `subset_names`."""
        return subset_names(self.dataset_dir, self.subsets, split)

    def tables(self, name: str, split: str) -> Sequence[Table]:
        """See `source_tables`."""
        return source_tables(self.dataset_dir, name, split)

    def image_dir_of(self, name: str) -> Path:
        """One folder for all subsets."""
        return self.image_dir

    def file_name(self, table: Table) -> str:
        """The table's path below the dataset's folder."""
        return str(table.path.relative_to(self.dataset_dir))

    def where(self, name: str) -> str:
        """The subset's folder."""
        return str(self.dataset_dir / name)


@dataclass(frozen=True)
class SourceTable:
    """One parquet file of a subset.

    Attributes:
        path: The file.
        first_row: Number of its first row, counted over the subset's files.
        num_rows: Number of its rows.
        columns: Its known columns.
        unused: Its other columns.
    """

    path: Path
    first_row: int
    num_rows: int
    columns: tuple[str, ...]
    unused: tuple[str, ...] = ()

    def sha256(self) -> str:
        """The file's checksum."""
        return sha256_of(self.path)

    def rows(self, start: int, end: int) -> Iterator[SourceRow]:
        """Rows start <= number < end, numbered over the subset's files; other rows are not decoded.

        Raises:
            InputError: The file is damaged in these rows.
        """
        first = self.first_row
        try:
            stamp = file_stamp(self.path)
            for group, group_rows in enumerate(_row_groups(self.path, stamp)):
                lower, upper = max(start, first), min(end, first + group_rows)
                if lower < upper:
                    table = _row_group(self.path, stamp, group, self.columns)
                    if table.num_rows != group_rows:
                        raise ValueError(f"row group {group} has {table.num_rows} rows, not {group_rows}")
                    part = table.slice(lower - first, upper - lower)
                    columns = map(_values, part.columns)
                    for number, values in enumerate(zip(*columns, strict=True), start=lower):
                        yield SourceRow(number, _pair(dict(zip(self.columns, values, strict=True))))
                first += group_rows
        except UNREADABLE_TABLE as error:
            raise _unreadable(self.path, error) from error

    def image_paths(self) -> Iterator[str]:
        """Every distinct image path in the table, in order of first use.

        Raises:
            InputError: The file is damaged.
        """
        yield from distinct(self._image_paths())

    def _image_paths(self) -> Iterator[str]:
        names = [name for name in self.columns if name.endswith("_image_path")]
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
                    for row in zip(*map(_values, batch), strict=True):
                        yield from chain.from_iterable(map(_flat, row))
        except UNREADABLE_TABLE as error:
            raise _unreadable(self.path, error) from error


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    values: list[Any] = texts(column).to_pylist() if is_text(column.type) else column.to_pylist()
    return values


def _flat(value: Any) -> Iterator[str]:
    """Every path in a path, a list of paths, or a list of such lists."""
    if isinstance(value, list):
        yield from chain.from_iterable(map(_flat, value))
    elif value:
        yield value if isinstance(value, str) else value.decode()


def _pair(values: Mapping[str, Any]) -> RawPair | RowError:
    """A row's items, or the error that makes it unusable."""
    try:
        return unmarked_pair({field: values.get(column) for field, column in MMEB_NAMES.items()}, "")
    except RowError as error:
        return error


def file_stamp(path: Path) -> tuple[int, ...]:
    """A value that changes when the file changes, so that cached content is read again."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _row_groups(path: Path, stamp: tuple[int, ...]) -> tuple[int, ...]:
    """The number of rows in each of a table's row groups."""
    with pq.ParquetFile(path) as file:
        return tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))


# Cached, because a file may be one group of 100,000 rows that is cut into many shards.
@lru_cache(maxsize=1)
def _row_group(path: Path, stamp: tuple[int, ...], group: int, columns: tuple[str, ...]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=list(columns), use_threads=False)


def subset_names(root: Path, asked_for: Sequence[str], split: str) -> list[str]:
    """The subsets to convert; "all" means every folder that has tables of the split.

    Raises:
        InputError: There is no such folder, a name is invalid, a subset is given twice, or nothing has this split.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; {DOWNLOAD_HINT}")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    names = list(asked_for)
    if names == [ALL_SUBSETS]:
        names = [name for name in folders if _split_files(root / name, split)]
        if not names:
            raise InputError(f"{root}: no subset has {split}-00000-of-*.parquet; is it MMEB-train's folder?")
    for name in names:
        if not SUBSET_NAME.fullmatch(name):
            raise InputError(
                f"{name}: not a subset's name (up to 60 letters, digits, '-' and '_': it becomes part of tar members)"
            )
        if name not in folders:
            raise InputError(f"{root}: no subset {name}; there are {', '.join(folders) or 'none'}")
        if names.count(name) > 1:
            raise InputError(f"{name}: the subset is given twice")
    return names


def source_tables(root: Path, subset: str, split: str) -> list[SourceTable]:
    """A subset's tables of one split, in order; the older `train-*` files beside them are ignored.

    Raises:
        InputError: There are none, parts are missing or of two different sets, a file is not parquet, or a column is
            missing or not text.
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
    """(part, number of parts, path) of the split's files, in order."""
    pattern = re.compile(re.escape(split) + r"-(\d{5})-of-(\d{5})\.parquet")
    found = [(pattern.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), int(match[2]), path) for match, path in found if match)


def _opened(path: Path, first_row: int) -> SourceTable:
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, num_rows(file)
            check_names(path, schema, REQUIRED_COLUMNS, OPTIONAL_COLUMNS)
            columns = tuple(name for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if name in schema.names)
            for name in columns:
                kind = schema.field(name).type
                if not _is_text(kind, LISTS_IN_LISTS.get(name, 0)):
                    raise InputError(
                        f"{path}: column {name} is {kind}, not text{LISTS_ALLOWED[LISTS_IN_LISTS.get(name, 0)]}"
                    )
            return SourceTable(path, first_row, rows, columns, unused_columns(path, file, columns))
    except UNREADABLE_TABLE as error:
        raise _unreadable(path, error) from error


def _is_text(kind: pa.DataType, lists: int) -> bool:
    """Whether a column holds texts, or texts in at most `lists` nested lists."""
    return is_text(kind) or (lists > 0 and is_list(kind) and _is_text(kind.value_type, lists - 1))


def _unreadable(path: Path, error: Exception) -> InputError:
    if is_lfs_pointer_file(path):
        return InputError(f"{path}: {LFS_REMEDY}")
    return InputError(f"{path}: cannot read the table ({' '.join(str(error).split())}); download it again")
