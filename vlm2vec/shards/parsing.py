"""From the bytes of one sample in a tar to the sample."""

from __future__ import annotations

import json
from collections.abc import Mapping

from vlm2vec.shards.schema import (
    IMAGE_MEMBER_PREFIX,
    JSON_MEMBER,
    NEGATIVE,
    POSITIVE,
    QUERY,
    Item,
    Sample,
    content_hash,
)

BLOCK_BYTES = 512  # a tar's unit


def parse_sample(span: bytes, key: str, subset: str, entry: Mapping[str, int]) -> Sample:
    """The sample that a span holds; the span's checksum has been compared.

    Args:
        span: its bytes in the tar.
        key: its key.
        subset: its subset.
        entry: its row of the index: by `row`, `has_negative` and, for each side, text length, size and hash, batches
            have been planned, so the sample must be what they say.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, RecursionError: the span does not hold this sample.
    """
    members = _members(span, key)
    record = json.loads(members[JSON_MEMBER])
    images = {name.partition(".")[0]: data for name, data in members.items() if name != JSON_MEMBER}

    def item(side: str) -> Item:
        text, image = record[side]["text"], images.get(IMAGE_MEMBER_PREFIX[side])
        if not isinstance(text, str):
            raise TypeError(f"the text of the {side} is {type(text).__name__}, not a string")
        stated = record[side]["image"]
        size = (0, 0) if image is None else (stated["width"], stated["height"])
        found = (len(text), *size, content_hash(text, image))
        expected = tuple(entry[f"{side}_{name}"] for name in ("text_length", "width", "height", "hash"))
        if found != expected:
            raise ValueError(f"{side} is {found}, the index says {expected}")
        return Item(text, image)

    if (record[NEGATIVE] is not None) != entry["has_negative"]:
        raise ValueError("has_negative differs from the index")
    negative = None if record[NEGATIVE] is None else item(NEGATIVE)
    return Sample(key, subset, int(entry["row"]), item(QUERY), item(POSITIVE), negative)


def _members(span: bytes, key: str) -> dict[str, bytes]:
    """The members of one sample, by what follows the key: "json", "qry.jpg", ...

    Two fields of each USTAR header are all it takes, the checksum having vouched for the bytes: `tarfile` parses all
    sixteen and costs more than the read, the checksum and the JSON together.
    """
    members: dict[str, bytes] = {}
    offset = 0
    while offset < len(span):
        prefix, _, suffix = span[offset : offset + 100].rstrip(b"\0").decode("ascii").partition(".")
        if prefix != key:
            raise ValueError(f"{prefix} instead of {key}")
        size = int(span[offset + 124 : offset + 135], 8)
        if size < 0:
            raise ValueError(f"a member of {size} bytes")
        start = offset + BLOCK_BYTES
        members[suffix] = span[start : start + size]
        offset = start + -(-size // BLOCK_BYTES) * BLOCK_BYTES
    return members
