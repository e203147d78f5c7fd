"""Reads JSONL and CSV files row by row, starting at any row, without loading them into memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.rows import RowError
from data_prep.source import file_stamp
from vlm2vec.errors import InputError
from vlm2vec.item_rules import shorten
from vlm2vec.messages.words import counted

# The offset of every MARK_ROWS-th row is kept, so that the start of a range of rows is found quickly.
MARK_ROWS = 1024
# Limit for one line of JSON, and one field of CSV: much more than an image (MAX_IMAGE_BYTES) takes in base64.
MAX_LINE_BYTES = 1 << 28
MAX_FIELD_CHARACTERS = 1 << 24
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Place:
    """Where a row begins: row number, byte offset, line number (from 1)."""

    row: int
    offset: int
    line: int


# A row of the file: its number, its line, and its columns or the error that makes it unusable.
TextRow = tuple[int, int, "dict[str, Any] | RowError"]
# Yields the rows from a place on; the file is positioned there.
Walk = Callable[[BinaryIO, Place], Iterator["tuple[Place, dict[str, Any] | RowError]"]]


@dataclass(frozen=True)
class TextFile:
    """A JSONL or CSV file that was scanned once for its rows and columns.

    Attributes:
        path: The file.
        stamp: Its `file_stamp` at that time.
        header: The column names of a CSV file; () for JSONL.
        columns: All column names, in order of first use.
        num_rows: Number of rows; empty lines do not count.
        marks: The places of rows 0, MARK_ROWS, 2 * MARK_ROWS, ...
    """

    path: Path
    stamp: tuple[int, ...]
    header: tuple[str, ...]
    columns: tuple[str, ...]
    num_rows: int
    marks: tuple[Place, ...]

    def rows(self, start: int, end: int) -> Iterator[TextRow]:
        """Rows start <= number < end.

        Raises:
            InputError: The file has changed since it was scanned.
        """
        if file_stamp(self.path) != self.stamp:
            raise InputError(f"{self.path}: changed while it was read; run the same command again")
        if start >= end:
            return
        with open(self.path, "rb") as file:
            mark = self.marks[start // MARK_ROWS]
            file.seek(mark.offset)
            for place, content in _walk_of(self.path, self.header)(file, mark):
                if place.row >= end:
                    return
                if place.row >= start:
                    yield place.row, place.line, content


def scan(path: Path) -> TextFile:
    """Scans a file once from start to end.

    Args:
        path: The file; its name ends with .jsonl, .json (one object per line), .csv or .tsv.

    Raises:
        InputError: The file cannot be read: it is UTF-16, is an array instead of lines, has a quote that is never
            closed, no header, or no rows.
    """
    stamp = file_stamp(path)
    columns: dict[str, None] = {}
    marks: list[Place] = []
    count = 0
    with open(path, "rb") as file:
        start = _begin(file, path)
        header: tuple[str, ...] = ()
        if is_csv(path):
            header, start = _header(file, path, start)
            columns = dict.fromkeys(header)
        for place, content in _walk_of(path, header)(file, start):
            if place.row % MARK_ROWS == 0:
                marks.append(place)
            if not header and isinstance(content, dict):
                columns.update(dict.fromkeys(content))
            count = place.row + 1
    if not count:
        raise InputError(f"{path}: no rows")
    return TextFile(path, stamp, header, tuple(header or columns), count, tuple(marks))


def is_csv(path: Path) -> bool:
    """Whether its name is that of a CSV or TSV file."""
    return path.suffix.lower() in (".csv", ".tsv")


def _walk_of(path: Path, header: tuple[str, ...]) -> Walk:
    if is_csv(path):
        return lambda file, place: _csv_rows(file, path, header, place)
    return lambda file, place: _json_rows(file, path, place)


def _begin(file: BinaryIO, path: Path) -> Place:
    """The place of the first row, after a byte order mark if there is one."""
    head = file.read(64)
    if head.startswith(_UTF_16):
        raise InputError(f"{path}: UTF-16; save it as UTF-8")
    start = len(_BOM) if head.startswith(_BOM) else 0
    if not is_csv(path) and head[start:].lstrip().startswith(b"["):
        raise InputError(f"{path}: a JSON array; write one object per line (jq -c '.[]' {path.name} > pairs.jsonl)")
    file.seek(start)
    return Place(0, start, 1)


def _lines(file: BinaryIO, path: Path, place: Place) -> Iterator[tuple[int, int, bytes]]:
    """Offset, number and content of each line."""
    offset, number = place.offset, place.line
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES:
            raise InputError(f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; write one row per line")
        yield offset, number, line
        offset += len(line)
        number += 1


def _json_rows(file: BinaryIO, path: Path, place: Place) -> Iterator[tuple[Place, dict[str, Any] | RowError]]:
    row = place.row
    for offset, number, line in _lines(file, path, place):
        if line.isspace():
            continue
        yield Place(row, offset, number), _json_object(line)
        row += 1


def _json_object(line: bytes) -> dict[str, Any] | RowError:
    try:
        content = json.loads(line.decode().rstrip())
    except UnicodeDecodeError:
        return RowError("not UTF-8")
    except json.JSONDecodeError as error:  # its line number counts within this line
        return RowError(f"not JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSON ({error})")
    if not isinstance(content, dict):
        return RowError(f"not a JSON object but {shorten(str(content))}")
    return content


def _header(file: BinaryIO, path: Path, start: Place) -> tuple[tuple[str, ...], Place]:
    """The column names, and the place after them."""
    lines = _CsvLines(file, path, start)
    try:
        header = next((fields for fields in _csv_reader(lines, path) if fields), None)
    except csv.Error as error:
        raise InputError(f"{path}, line {lines.number - 1}: cannot read the header ({error})") from error
    if not header:
        raise InputError(f"{path}: empty; the first line must name the columns")
    if len(header) == 1 and (others := [each for each in ";\t|" if each in header[0]]):
        raise InputError(
            f"{path}: the first line is {shorten(header[0])!r}, without a {_delimiter(path)!r}; are its fields "
            f"separated by {others[0]!r}? Save it with {_delimiter(path)!r}"
        )
    if "" in header:
        raise InputError(f"{path}: column {header.index('') + 1} has no name in the first line")
    return tuple(header), Place(0, lines.offset, lines.number)


def _csv_rows(
    file: BinaryIO, path: Path, header: tuple[str, ...], place: Place
) -> Iterator[tuple[Place, dict[str, Any] | RowError]]:
    """Fields may contain line breaks, so the CSV reader takes as many lines as a row has."""
    lines = _CsvLines(file, path, place)
    reader = _csv_reader(lines, path)
    row = place.row
    while True:
        here = Place(row, lines.offset, lines.number)
        content: dict[str, Any] | RowError
        try:
            fields = next(reader)
            if not fields:
                continue
            content = dict(zip(header, fields, strict=False))
            if len(fields) != len(header):
                content = RowError(f"{counted(len(fields), 'field')}, the first line names {len(header)}")
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error) or "field larger" in str(error):
                raise InputError(
                    f"{path}, line {here.line}: a quote that begins in this row is never closed ({error})"
                ) from error
            content = RowError(f"not CSV ({error})")
        yield here, content
        row += 1


def _csv_reader(lines: _CsvLines, path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    return csv.reader(lines, delimiter=_delimiter(path), strict=True)


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


class _CsvLines:
    """The lines of a CSV file for the CSV reader; records where the next line begins.

    Bytes that are not UTF-8 become halves of surrogate pairs, which are detected in every text.
    """

    def __init__(self, file: BinaryIO, path: Path, place: Place) -> None:
        self._lines = _lines(file, path, place)
        self.offset, self.number = place.offset, place.line

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        offset, number, line = next(self._lines)
        self.offset, self.number = offset + len(line), number + 1
        return line.decode(errors="surrogateescape")
