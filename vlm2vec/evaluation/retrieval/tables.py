"""Reads the rows of a collection's tables, with their row numbers, from parquet, JSON lines or tab-separated values."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm2vec.errors import InputError
from vlm2vec.files import LFS_REMEDY, is_lfs_pointer_file
from vlm2vec.formats.tables import UNREADABLE_TABLE, num_rows

SUFFIXES = (".parquet", ".jsonl", ".tsv")
# Rows read at a time: they may contain images.
_READ_ROWS = 32
_MAX_LINE_CHARACTERS = 1 << 26

Row = Mapping[str, Any]


def find_files(folder: Path, part: str, split: str) -> list[Path]:
    """The files of one part of a collection ("queries", "corpus" or "qrels"), in order.

    They are `PART.SUFFIX` or `PART-*.SUFFIX` in the folder, files in its sub-folder `PART`, or the same below `data/`.
    If files are named after splits (`test.tsv`, `test-00000-of-00002.parquet`), those of `split` are used.

    Args:
        folder: Folder of the collection.
        part: Name of the part.
        split: Name of the split.

    Raises:
        InputError: There are none, some are missing, or all are of different splits.
    """
    for base in (folder, folder / "data"):
        found = [base / f"{part}{suffix}" for suffix in SUFFIXES]
        found += [path for suffix in SUFFIXES for path in sorted(base.glob(f"{part}-*{suffix}"))]
        found = [path for path in found if path.is_file()]
        inside = sorted(path for path in (base / part).glob("*") if path.suffix in SUFFIXES and path.is_file())
        if found or inside:
            return _complete(found or _of_split(inside, split))
    raise InputError(f"{folder}: no {part}: expected {part}.jsonl, {part}.parquet or a folder {part} with such files")


def _of_split(paths: Sequence[Path], split: str) -> list[Path]:
    of_split = [path for path in paths if _split_name(path) == split]
    if of_split:
        return of_split
    others = sorted({_split_name(path) for path in paths} & _SPLITS)
    if others:
        raise InputError(f"{paths[0].parent}: no files of split {split}; there are files of {', '.join(others)}")
    return list(paths)


_SPLITS = {"train", "dev", "validation", "val", "test"}


def _split_name(path: Path) -> str:
    return path.stem.split("-", 1)[0]


def _complete(paths: list[Path]) -> list[Path]:
    """Refuses a partial download of `NAME-<i>-of-<n>` files."""
    for path in paths:
        pieces = path.stem.rsplit("-", 3)
        if len(pieces) == 4 and pieces[2] == "of" and pieces[1].isdigit() and pieces[3].isdigit():
            expected = [f"{pieces[0]}-{part:05d}-of-{pieces[3]}" for part in range(int(pieces[3]))]
            if [each.stem for each in paths] != expected:
                raise InputError(
                    f"{path.parent}: not all {int(pieces[3])} parts of {pieces[0]} are there; download the rest"
                )
            break
    return paths


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Reads the rows of a file with their numbers: lines from 1 in text files, rows from 0 in parquet.

    Raises:
        InputError: The file cannot be read; the message names it, and the line.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
        elif path.suffix == ".jsonl":
            yield from _json_rows(path)
        else:
            yield from _tsv_rows(path)
    except UNREADABLE_TABLE as error:
        if isinstance(error, InputError):
            raise
        reason = LFS_REMEDY if is_lfs_pointer_file(path) else f"cannot be read ({' '.join(str(error).split())})"
        raise InputError(f"{path}: {reason}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with pq.ParquetFile(path) as file:
        num_rows(file)
        row = 0
        for batch in file.iter_batches(batch_size=_READ_ROWS):
            for values in pa.Table.from_batches([batch]).to_pylist():
                yield row, values
                row += 1


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path} line {number}: not JSON ({error})") from error
            if not isinstance(values, dict):
                raise InputError(f"{path} line {number}: expected a JSON object, not {type(values).__name__}")
            yield number, values


def _tsv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, dialect="excel-tab", quoting=csv.QUOTE_NONE)
        for values in reader:
            if None in values or None in values.values():
                raise InputError(f"{path} line {reader.line_num}: the number of fields differs from the header's")
            yield reader.line_num, values


def where(path: Path, number: int) -> str:
    """Name of a row in messages."""
    return f"{path} {'row' if path.suffix == '.parquet' else 'line'} {number}"


def column_of(row: Row, names: Sequence[str]) -> str | None:
    """The first of some names that a row has; None if it has none."""
    return next((name for name in names if name in row), None)
