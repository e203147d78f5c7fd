"""A row of an index, whatever its version: where a sample lies in its tar, and what its items are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlm2vec.shards.schema import NEGATIVE, PLAIN, POSITIVE, QUERY, SEVERAL, Version

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ItemEntry:
    """What an index says of an item.

    Attributes:
        text_length: Characters of its text.
        hash: Its `content_hash`.
        sizes: Width and height of each image, in pixels.
        image_hashes: `fast_hash` of each image; None: not loaded.
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
    """What an index says of a sample.

    Attributes:
        row: Number of its source row.
        offset: Where it begins in the tar, in bytes.
        size: Its bytes, headers and padding included.
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
        """Every item with its name; that of the second hard negative is "negative 2"."""
        yield QUERY, self.query
        yield POSITIVE, self.positive
        for number, item in enumerate(self.negatives):
            yield item_name(NEGATIVE, number), item

    @property
    def schema_version(self) -> Version:
        """The least version of an index that can say this."""
        is_plain = len(self.negatives) <= 1 and all(len(item.sizes) <= 1 for _, item in self.items())
        return PLAIN if is_plain else SEVERAL


def item_name(side: str, number: int) -> str:
    """What messages call an item of a sample: its side; of further hard negatives (`number` from 0) which one."""
    return f"{side} {number + 1}" if number else side
