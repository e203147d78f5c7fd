"""One row of an index, in any version: a sample's place in its tar and a description of its items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlm2vec.shards.schema import NEGATIVE, PLAIN, POSITIVE, QUERY, SEVERAL, Version

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ItemEntry:
    """Description of an item in an index.

    Attributes:
        text_length: Length of its text in characters.
        hash: Its `content_hash`.
        sizes: Width and height of each image in pixels.
        image_hashes: `fast_hash` of each image; None if not loaded.
    """

    text_length: int
    hash: int
    sizes: tuple[Size, ...] = ()
    image_hashes: tuple[int, ...] | None = None

    def differences(self, other: ItemEntry) -> Iterator[str]:
        """Names of the index columns in which two descriptions of an item differ."""
        if self.text_length != other.text_length:
            yield "text_length"
        if len(self.sizes) != len(other.sizes):
            yield "num_images"
        for name, axis in (("width", 0), ("height", 1)):
            if any(own[axis] != their[axis] for own, their in zip(self.sizes, other.sizes, strict=False)):
                yield name
        if self.hash != other.hash:
            yield "hash"
        if self.image_hashes != other.image_hashes:
            yield "image_hash"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Description of a sample in an index.

    Attributes:
        row: Number of its source row.
        offset: Start in the tar, in bytes.
        size: Size in bytes, tar headers and padding included.
        checksum: `fast_hash` of these bytes.
        query, positive, negatives: Its items.
    """

    row: int
    offset: int
    size: int
    checksum: int
    query: ItemEntry
    positive: ItemEntry
    negatives: tuple[ItemEntry, ...] = ()

    def items(self) -> Iterator[tuple[str, ItemEntry]]:
        """Every item with its name; the second hard negative's name is "negative 2"."""
        yield QUERY, self.query
        yield POSITIVE, self.positive
        for number, item in enumerate(self.negatives):
            yield item_name(NEGATIVE, number), item

    @property
    def schema_version(self) -> Version:
        """Lowest index version that can store this sample."""
        is_plain = len(self.negatives) <= 1 and all(len(item.sizes) <= 1 for _, item in self.items())
        return PLAIN if is_plain else SEVERAL


def item_name(side: str, number: int) -> str:
    """Name of an item in messages: its side, with a number for hard negatives after the first (`number` from 0)."""
    return f"{side} {number + 1}" if number else side
