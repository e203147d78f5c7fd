"""A source row as the converter takes it, whatever table it comes from: query, target and hard negatives, undecoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class RowError(Exception):
    """What is wrong with a row; it is left out and counted."""


@dataclass(frozen=True)
class RawImage:
    """An image that a row names or holds.

    Attributes:
        name: Its path, or what to call it.
        data: Its bytes; None: the file at the path.
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
        """Of the images that are files."""
        for item in (self.query, self.positive, *self.negatives):
            yield from (image.name for image in item.images if image.data is None)


@dataclass(frozen=True)
class SourceRow:
    """A row of a table.

    Attributes:
        number: Counted over the subset's tables.
        content: Its items, or what is wrong with it.
        place: File and line or row, for messages; "" where the number says enough (MMEB's tables).
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
        """Rows it has."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Its columns that nothing reads."""

    def sha256(self) -> str:
        """The file's checksum."""

    def rows(self, start: int, end: int) -> Iterator[SourceRow]:
        """Rows start <= number < end.

        Raises:
            InputError: The file is damaged there.
        """

    def image_paths(self) -> Iterator[str]:
        """Every different image that the table names, in order of first use.

        Raises:
            InputError: The file is damaged.
        """


class Source(Protocol):
    """What is converted: subsets, each with its tables and the folder of its images."""

    @property
    def allow_links(self) -> bool:
        """Follow links that lead out of the folders of images."""

    def names(self, split: str) -> list[str]:
        """The subsets.

        Raises:
            InputError: None, or none of these names.
        """

    def tables(self, name: str, split: str) -> Sequence[Table]:
        """A subset's tables, in order.

        Raises:
            InputError: One that cannot be read.
        """

    def image_dir_of(self, name: str) -> Path:
        """What a subset's image paths are relative to."""

    def file_name(self, table: Table) -> str:
        """What the plan calls a table: the same wherever the data lie."""

    def where(self, name: str) -> str:
        """What messages call a subset's folder or file."""


def distinct(paths: Iterable[str]) -> Iterator[str]:
    """Each path once, in order of first use; "" is none."""
    seen = {""}
    for path in paths:
        if path not in seen:
            seen.add(path)
            yield path
