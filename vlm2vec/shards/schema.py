"""What a sample is, and the names under which shards, their members and their index columns are stored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import xxhash

# Raised when a reader of the old version would misread new files. Data in which no pair has several hard negatives and
# no item several images is still written as version 2, to the same bytes as before there was a version 3.
Version = Literal[2, 3]
PLAIN: Version = 2
SEVERAL: Version = 3
SCHEMA_VERSIONS: tuple[Version, ...] = (PLAIN, SEVERAL)
MANIFEST_NAME = "manifest.json"
PLAN_NAME = "plan.json"  # the converter's, there from the beginning

QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"
SIDES = (QUERY, POSITIVE, NEGATIVE)
JSON_MEMBER = "json"
# Keys of a sample's JSON: an item's only image, or else all of them; all hard negatives, unless there is one or none.
IMAGE, SEVERAL_IMAGES, SEVERAL_NEGATIVES = "image", "images", "negatives"
IMAGE_MEMBER_PREFIX = {QUERY: "qry", POSITIVE: "pos", NEGATIVE: "neg"}

# Part of file names, tar member names and webdataset keys; 60 characters keep every member name inside USTAR's 100.
SUBSET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")


@dataclass(frozen=True)
class Item:
    """A query, target or hard negative: its text ("" = none) and its images' undecoded bytes, in the order of its tags.

    The text holds a tag `<|image_k|>` for image k, counted from 1, or nothing beside a single image.
    """

    text: str
    images: tuple[bytes, ...] = ()

    @property
    def image(self) -> bytes | None:
        """Its only image, None without any.

        Raises:
            ValueError: It has several.
        """
        if len(self.images) > 1:
            raise ValueError(f"an item of {len(self.images)} images")
        return self.images[0] if self.images else None


@dataclass(frozen=True)
class Sample:
    """A training pair with its hard negatives, if the data has any; `row` counts in the subset's source tables."""

    key: str
    subset: str
    row: int
    query: Item
    positive: Item
    negatives: tuple[Item, ...] = ()

    def item(self, side: str, number: int = 0) -> Item | None:
        """One of its items, None if it has no such hard negative.

        Args:
            side: One of `SIDES`.
            number: Which hard negative, from 0.
        """
        if side != NEGATIVE:
            return self.query if side == QUERY else self.positive
        return self.negatives[number] if number < len(self.negatives) else None


def fast_hash(content: bytes) -> int:
    """Signed 64 bits that tell whether two images are the same to the byte, or whether a sample was damaged."""
    return int.from_bytes(xxhash.xxh3_64_digest(content), "little", signed=True)


def item_hash(text: str, images: Iterable[int] = ()) -> int:
    """Signed 64 bits that tell whether two items are the same; `images` are the `fast_hash` of its images, in order.

    With a million different items, the chance that any two collide is 3e-8.
    """
    digest = hashlib.blake2b(digest_size=8)
    encoded = text.encode()
    digest.update(len(encoded).to_bytes(8, "little"))  # so that text and images cannot trade bytes
    digest.update(encoded)
    for image in images:  # an image of no bytes is not the same as no image
        digest.update(image.to_bytes(8, "little", signed=True))
    return int.from_bytes(digest.digest(), "little", signed=True)


def content_hash(text: str, *images: bytes) -> int:
    """Signed 64 bits: same text and same bytes of the images, in the same order <=> same hash."""
    return item_hash(text, map(fast_hash, images))


def image_members(side: str, number: int, num_negatives: int, num_images: int) -> list[str]:
    """What the tar's members of an item's images are called, behind the sample's key and without an extension.

    A single image is "qry", "pos" or "neg"; several are "qry.0", "qry.1", ...; those of the second of several hard
    negatives are "neg1", or "neg1.0", "neg1.1", ...

    Args:
        side: One of `SIDES`.
        number: Which hard negative, from 0.
        num_negatives: Of the sample.
        num_images: Of the item.
    """
    prefix = IMAGE_MEMBER_PREFIX[side] + (str(number) if side == NEGATIVE and num_negatives > 1 else "")
    return [prefix] if num_images == 1 else [f"{prefix}.{image}" for image in range(num_images)]


def sample_key(subset: str, row: int) -> str:
    """The webdataset key; free of dots, because webdataset cuts keys at the first one."""
    return f"{subset}/{row:08d}"


def shard_name(subset: str, number: int) -> str:
    """The stem shared by a shard's tar, index (.parquet) and sidecar (.json)."""
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


# The same with lists: an entry an image, or of hard negatives an entry each and in it an entry an image.
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
