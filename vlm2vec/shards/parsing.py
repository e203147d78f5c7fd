"""From the bytes of one sample in a tar to the sample."""

from __future__ import annotations

import json

from vlm2vec.shards.schema import IMAGE_MEMBER_PREFIX, JSON_MEMBER, NEGATIVE, POSITIVE, QUERY, Item, Sample

BLOCK_BYTES = 512  # a tar's unit


def parse_sample(span: bytes, key: str, subset: str, row: int) -> Sample:
    """The sample that a span holds; the span's checksum has been compared.

    Raises:
        KeyError, TypeError, ValueError: the span does not hold this sample.
    """
    members = _members(span, key)
    record = json.loads(members[JSON_MEMBER])
    images = {name.partition(".")[0]: data for name, data in members.items() if name != JSON_MEMBER}

    def item(side: str) -> Item:
        return Item(record[side]["text"], images.get(IMAGE_MEMBER_PREFIX[side]))

    negative = None if record[NEGATIVE] is None else item(NEGATIVE)
    return Sample(key, subset, row, item(QUERY), item(POSITIVE), negative)


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
        start = offset + BLOCK_BYTES
        members[suffix] = span[start : start + size]
        offset = start + -(-size // BLOCK_BYTES) * BLOCK_BYTES
    return members
