"""Defines samples and items, and the names of shards, tar members and index columns."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import xxhash

# The version is raised if readers of the old version would misread new files. Data in which no pair has several hard
# negatives and no item several images are still written as version 2, with the same bytes as before version 3.
Version = Literal[2, 3]
PLAIN: Version = 2
SEVERAL: Version = 3
SCHEMA_VERSIONS: tuple[Version, ...] = (PLAIN, SEVERAL)
MANIFEST_NAME = "manifest.json"
PLAN_NAME = "plan.json"  # the converter writes it at its start

QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"
SIDES = (QUERY, POSITIVE, NEGATIVE)
JSON_MEMBER = "json"
# Keys of a sample's JSON: an item's single image, or all of several; all hard negatives if there are several.
IMAGE, SEVERAL_IMAGES, SEVERAL_NEGATIVES = "image", "images", "negatives"
IMAGE_MEMBER_PREFIX = {QUERY: "qry", POSITIVE: "pos", NEGATIVE: "neg"}

# Part of file names, tar member names and WebDataset keys; 60 characters keep member names within USTAR's 100.
SUBSET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")


@dataclass(frozen=True)
class Item:
    """A query, target or hard negative: its text ("" if none) and its undecoded images, in the order of their tags.

    The text holds a tag `<|image_k|>` for each image k, counted from 1; it may be empty if there is a single image.
    """

    text: str
    images: tuple[bytes, ...] = ()

    @property
    def image(self) -> bytes | None:
        """The single image; None without one.

        Raises:
            ValueError: The item has several images.
        """
        if len(self.images) > 1:
            raise ValueError(f"an item of {len(self.images)} images")
        return self.images[0] if self.images else None


@dataclass(frozen=True)
class Sample:
    """A training pair with its hard negatives, if any; `row` is its number in the subset's source tables."""

    key: str
    subset: str
    row: int
    query: Item
    positive: Item
    negatives: tuple[Item, ...] = ()

    def item(self, side: str, number: int = 0) -> Item | None:
        """One item of the sample; None if it has no such hard negative.

        Args:
            side: One of `SIDES`.
            number: Number of the hard negative, from 0.
        """
        if side != NEGATIVE:
            return self.query if side == QUERY else self.positive
        return self.negatives[number] if number < len(self.negatives) else None


def fast_hash(content: bytes) -> int:
    """64-bit hash (signed) to compare images byte by byte and to detect damaged samples."""
    return int.from_bytes(xxhash.xxh3_64_digest(content), "little", signed=True)


def item_hash(text: str, images: Iterable[int] = ()) -> int:
    """64-bit hash (signed) to compare items; `images` are the `fast_hash` of its images, in order.

    Among a million distinct items, the probability of any collision is 3e-8.
    """
    digest = hashlib.blake2b(digest_size=8)
    encoded = text.encode()
    digest.update(len(encoded).to_bytes(8, "little"))  # so that bytes cannot move between text and images
    digest.update(encoded)
    for image in images:  # an empty image differs from no image
        digest.update(image.to_bytes(8, "little", signed=True))
    return int.from_bytes(digest.digest(), "little", signed=True)


def content_hash(text: str, *images: bytes) -> int:
    """64-bit hash (signed) of an item's text and its images' bytes, in order."""
    return item_hash(text, map(fast_hash, images))


def image_members(side: str, number: int, num_negatives: int, num_images: int) -> list[str]:
    """Names of the tar members of an item's images, without the sample's key and the extension.

    A single image is "qry", "pos" or "neg"; several are "qry.0", "qry.1", ...; images of the second of several hard
    negatives are "neg1", or "neg1.0", "neg1.1", ...

    Args:
        side: One of `SIDES`.
        number: Number of the hard negative, from 0.
        num_negatives: Number of hard negatives of the sample.
        num_images: Number of images of the item.
    """
    prefix = IMAGE_MEMBER_PREFIX[side] + (str(number) if side == NEGATIVE and num_negatives > 1 else "")
    return [prefix] if num_images == 1 else [f"{prefix}.{image}" for image in range(num_images)]


def sample_key(subset: str, row: int) -> str:
    """The WebDataset key of a sample; it has no dots, because WebDataset ends keys at the first dot."""
    return f"{subset}/{row:08d}"


def shard_name(subset: str, number: int) -> str:
    """Stem of the names of a shard's tar, index (.parquet) and sidecar (.json)."""
    return f"{subset}-{number:05d}"


# offset and size span a whole sample in the tar, headers and padding included; checksum is the span's fast_hash. Text
# lengths are in characters, widths and heights in pixels (0 = no image), hash is the item's content_hash, image_hash
# the image's fast_hash (0 = no image). A missing negative has zeros throughout.
_SPAN = [pa.field(name, pa.int64(), nullable=False) for name in ("row", "offset", "size", "checksum")]
_KINDS = {"text_length": pa.int32(), "width": pa.int32(), "height": pa.int32(), "hash": pa.int64()}
_KINDS["image_hash"] = pa.int64()
INDEX_SCHEMA = pa.schema(
    [
        *_SPAN,
        *(pa.field(f"{side}_{name}", kind, nullable=False) for side in SIDES for name, kind in _KINDS.items()),
        pa.field("has_negative", pa.bool_(), nullable=False),
    ]
)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


# The same with lists: one entry per image; for hard negatives, one list per hard negative with one entry per image.
LIST_INDEX_SCHEMA = pa.schema(
    [
        *_SPAN,
        *(
            pa.field(f"{side}_{name}", kind, nullable=False)
            for side in (QUERY, POSITIVE)
            for name, kind in (
                ("text_length", pa.int32()),
                ("hash", pa.int64()),
                ("widths", _list(pa.int32())),
                ("heights", _list(pa.int32())),
                ("image_hashes", _list(pa.int64())),
            )
        ),
        *(
            pa.field(f"{NEGATIVE}_{name}", kind, nullable=False)
            for name, kind in (
                ("text_lengths", _list(pa.int32())),
                ("hashes", _list(pa.int64())),
                ("widths", _list(_list(pa.int32()))),
                ("heights", _list(_list(pa.int32()))),
                ("image_hashes", _list(_list(pa.int64()))),
            )
        ),
    ]
)
INDEX_SCHEMAS: dict[Version, pa.Schema] = {PLAIN: INDEX_SCHEMA, SEVERAL: LIST_INDEX_SCHEMA}
