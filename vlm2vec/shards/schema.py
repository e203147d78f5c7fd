"""What a sample is, and the names under which shards, their members and their index columns are stored."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import pyarrow as pa
import xxhash

# Raised when a reader of the old version would misread new files.
SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"
PLAN_NAME = "plan.json"  # the converter's, there from the beginning

QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"
SIDES = (QUERY, POSITIVE, NEGATIVE)
JSON_MEMBER = "json"
IMAGE_MEMBER_PREFIX = {QUERY: "qry", POSITIVE: "pos", NEGATIVE: "neg"}

# Part of file names, tar member names and webdataset keys; 60 characters keep every member name inside USTAR's 100.
SUBSET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")


@dataclass(frozen=True)
class Item:
    """One side of a pair: its text ("" = none) and its picture's undecoded bytes (None = none)."""

    text: str
    image: bytes | None


@dataclass(frozen=True)
class Sample:
    """A training pair, with a hard negative where the data has one; `row` counts in the subset's source tables."""

    key: str
    subset: str
    row: int
    query: Item
    positive: Item
    negative: Item | None


def fast_hash(content: bytes) -> int:
    """Signed 64 bits that tell whether two pictures are the same to the byte, or whether a sample was damaged."""
    return int.from_bytes(xxhash.xxh3_64_digest(content), "little", signed=True)


def item_hash(text: str, image: int | None) -> int:
    """Signed 64 bits that tell whether two items are the same; `image` is the image's `fast_hash`, None = none.

    With a million different items, the chance that any two collide is 3e-8.
    """
    digest = hashlib.blake2b(digest_size=8)
    encoded = text.encode()
    digest.update(len(encoded).to_bytes(8, "little"))  # so that text and picture cannot trade bytes
    digest.update(encoded)
    if image is not None:  # a picture of no bytes is not the same as no picture
        digest.update(image.to_bytes(8, "little", signed=True))
    return int.from_bytes(digest.digest(), "little", signed=True)


def content_hash(text: str, image: bytes | None) -> int:
    """Signed 64 bits: same text and same picture bytes <=> same hash."""
    return item_hash(text, None if image is None else fast_hash(image))


def sample_key(subset: str, row: int) -> str:
    """The webdataset key; free of dots, because webdataset cuts keys at the first one."""
    return f"{subset}/{row:08d}"


def shard_name(subset: str, number: int) -> str:
    """The stem shared by a shard's tar, index (.parquet) and sidecar (.json)."""
    return f"{subset}-{number:05d}"


# offset and size span a whole sample in the tar, headers and padding included; checksum is the span's fast_hash. Text
# lengths are in characters, widths and heights in pixels (0 = no picture), hash is the item's content_hash, image_hash
# the picture's fast_hash (0 = no picture). A missing negative has zeros throughout.
INDEX_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("checksum", pa.int64(), nullable=False),
        *(
            pa.field(f"{side}_{name}", kind, nullable=False)
            for side in SIDES
            for name, kind in (
                ("text_length", pa.int32()),
                ("width", pa.int32()),
                ("height", pa.int32()),
                ("hash", pa.int64()),
                ("image_hash", pa.int64()),
            )
        ),
        pa.field("has_negative", pa.bool_(), nullable=False),
    ]
)

# What reading and planning need: a training process does not hold the pictures' hashes, which serve statistics.
READING_COLUMNS = tuple(name for name in INDEX_SCHEMA.names if not name.endswith("_image_hash"))
