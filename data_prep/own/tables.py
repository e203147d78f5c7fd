"""The user's tables of any format, with the converter's interface of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.own.arrow_files import ArrowFile, open_arrow
from data_prep.own.columns import IMAGE_FIELDS, choose_columns
from data_prep.own.folders import TABLE_SUFFIXES
from data_prep.own.pairs import pair_of
from data_prep.own.text_files import TextFile, scan
from data_prep.rows import RawPair, RowError, SourceRow, distinct
from vlm2vec.errors import InputError
from vlm2vec.files import sha256_of


@dataclass(frozen=True)
class OwnTable:
    """One file of pairs.

    Attributes:
        file: Reads its rows.
        name: Its name in messages and in the plan: its path below the dataset's folder.
        first_row: Number of its first row, counted over the subset's files.
        columns: The column of each field.
        instruction: Put before the text of every query.
    """

    file: TextFile | ArrowFile
    name: str
    first_row: int
    columns: Mapping[str, str]
    instruction: str | None

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def num_rows(self) -> int:
        """The number of its rows."""
        return self.file.num_rows

    @property
    def unused(self) -> tuple[str, ...]:
        """Its columns that nothing reads."""
        used = set(self.columns.values())
        return tuple(name for name in self.file.columns if name not in used)

    def sha256(self) -> str:
        """The file's checksum."""
        return sha256_of(self.path)

    def rows(self, start: int, end: int) -> Iterator[SourceRow]:
        """Rows start <= number < end, numbered over the subset's files.

        Raises:
            InputError: The file is damaged in these rows, or has changed since it was opened.
        """
        for number, place, content in self._contents(start - self.first_row, end - self.first_row):
            yield SourceRow(self.first_row + number, self._pair(place, content), place)

    def image_paths(self) -> Iterator[str]:
        """Every distinct image file that the table names, in order of first use.

        Raises:
            InputError: See `rows`.
        """
        if any(field in IMAGE_FIELDS for field in self.columns):
            rows = self.rows(self.first_row, self.first_row + self.num_rows)
            pairs = (row.content for row in rows if isinstance(row.content, RawPair))
            yield from distinct(path for pair in pairs for path in pair.image_paths())

    def _contents(self, start: int, end: int) -> Iterator[tuple[int, str, dict[str, Any] | RowError]]:
        if isinstance(self.file, TextFile):
            for number, line, content in self.file.rows(start, end):
                yield number, f"{self.name}, line {line}", content
        else:
            for number, values in self.file.rows(start, end):
                yield number, f"{self.name}, row {number}", values

    def _pair(self, place: str, content: dict[str, Any] | RowError) -> RawPair | RowError:
        if isinstance(content, RowError):
            return content
        values = {field: content.get(column) for field, column in self.columns.items()}
        try:
            return pair_of(values, place, self.instruction)
        except RowError as error:
            return error


def open_table(
    path: Path, name: str, first_row: int, asked: Mapping[str, str] | None, instruction: str | None
) -> OwnTable:
    """Opens a table of any format; JSONL and CSV files are read once from start to end.

    Args:
        path: The file; its suffix determines the format.
        name: See `OwnTable`.
        first_row: See `OwnTable`.
        asked: The columns by field, from `--columns`; None: columns are recognized by their names.
        instruction: See `OwnTable`.

    Raises:
        InputError: The format is unknown, the file cannot be read or has no rows, or the columns do not match.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".parquet", ".arrow"):
            arrow = open_arrow(path, asked)
            return OwnTable(arrow, name, first_row, arrow.chosen, instruction)
        if suffix in TABLE_SUFFIXES:
            text = scan(path)
            columns = choose_columns(str(path), text.header or text.columns, asked)
            return OwnTable(text, name, first_row, columns, instruction)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    raise InputError(f"{path}: a table's name must end with {', '.join(TABLE_SUFFIXES)}")
