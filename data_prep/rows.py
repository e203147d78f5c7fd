"""The converter's form of a source row, common to all kinds of tables: undecoded query, target and hard negatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class RowError(Exception):
    """A row is unusable; it is left out and counted."""


@dataclass(frozen=True)
class RawImage:
    """An image of a row: a path or bytes.

    Attributes:
        name: The path, or a name for messages.
        data: The bytes; None: they are in the file at the path.
    """

    name: str
    data: bytes | None = None


@dataclass(frozen=True)
class RawItem:
    """A text, "" if there is none, and its images."""

    text: str
    images: tuple[RawImage, ...] = ()


@dataclass(frozen=True)
class RawPair:
    """A row's items."""

    query: RawItem
    positive: RawItem
    negatives: tuple[RawItem, ...] = ()

    def image_paths(self) -> Iterator[str]:
        """The paths of the images that are files."""
        for item in (self.query, self.positive, *self.negatives):
            yield from (image.name for image in item.images if image.data is None)


@dataclass(frozen=True)
class SourceRow:
    """A row of a table.

    Attributes:
        number: The row's number, counted over all tables of the subset.
        content: Its items, or the error that makes it unusable.
        place: File and line or row, for messages; "" where the number is enough (MMEB's tables).
    """

    number: int
    content: RawPair | RowError
    place: str = ""


class Table(Protocol):
    """A table of pairs."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def first_row(self) -> int:
        """Number of its first row, counted over the subset's tables."""

    @property
    def num_rows(self) -> int:
        """The number of its rows."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Its columns that nothing reads."""

    def sha256(self) -> str:
        """The file's checksum."""

    def rows(self, start: int, end: int) -> Iterator[SourceRow]:
        """Rows start <= number < end.

        Raises:
            InputError: The file is damaged in these rows.
        """

    def image_paths(self) -> Iterator[str]:
        """Every distinct image path in the table, in order of first use.

        Raises:
            InputError: The file is damaged.
        """


class Source(Protocol):
    """The data to convert: subsets, each with its tables and image folder."""

    @property
    def allow_links(self) -> bool:
        """Whether to follow links that lead out of the image folders."""

    def names(self, split: str) -> list[str]:
        """The subsets.

        Raises:
            InputError: There are no subsets, or none of these names.
        """

    def tables(self, name: str, split: str) -> Sequence[Table]:
        """A subset's tables, in order.

        Raises:
            InputError: A table cannot be read.
        """

    def image_dir_of(self, name: str) -> Path:
        """The folder that a subset's image paths are relative to."""

    def file_name(self, table: Table) -> str:
        """The table's name in the plan; it does not depend on where the data is."""

    def where(self, name: str) -> str:
        """The name of a subset's folder or file in messages."""


def distinct(paths: Iterable[str]) -> Iterator[str]:
    """Each path once, in order of first use; "" is skipped."""
    seen = {""}
    for path in paths:
        if path not in seen:
            seen.add(path)
            yield path
