"""Parses the bytes of one sample in a tar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlm2vec.shards.entry import IndexEntry, ItemEntry
from vlm2vec.shards.schema import (
    IMAGE,
    JSON_MEMBER,
    NEGATIVE,
    POSITIVE,
    QUERY,
    SEVERAL_IMAGES,
    SEVERAL_NEGATIVES,
    Item,
    Sample,
    content_hash,
    image_members,
)
from vlm2vec.shards.tar import BLOCK_BYTES


def parse_sample(span: bytes, key: str, subset: str, entry: IndexEntry) -> Sample:
    """Parses the sample in a span of bytes, whose checksum was compared before.

    Args:
        span: Bytes of the sample in the tar.
        key: Key of the sample.
        subset: Subset of the sample.
        entry: Index row of the sample, without the images' hashes. Batches are planned by it, so the sample must match
            it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, RecursionError: The span does not hold this sample.
    """
    members = _members(span, key)
    record = json.loads(members[JSON_MEMBER])
    images = {name.rpartition(".")[0]: data for name, data in members.items() if name != JSON_MEMBER}
    negatives = stated_negatives(record)

    def item(side: str, stated: Mapping[str, Any], expected: ItemEntry, number: int = 0) -> Item:
        text, sizes = stated["text"], [(each["width"], each["height"]) for each in stated_images(stated)]
        if not isinstance(text, str):
            raise TypeError(f"the text of the {side} is {type(text).__name__}, not a string")
        data = tuple(images.pop(name) for name in image_members(side, number, len(negatives), len(sizes)))
        found = ItemEntry(len(text), content_hash(text, *data), tuple(sizes))
        if found != expected:
            raise ValueError(f"{side} is {found}, the index says {expected}")
        return Item(text, data)

    sample = Sample(
        key,
        subset,
        entry.row,
        item(QUERY, record[QUERY], entry.query),
        item(POSITIVE, record[POSITIVE], entry.positive),
        tuple(
            item(NEGATIVE, stated, expected, number)
            for number, (stated, expected) in enumerate(zip(negatives, entry.negatives, strict=True))
        ),
    )
    if images:
        raise ValueError(f"images that belong to no item ({', '.join(images)})")
    return sample


def stated_negatives(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The hard negatives in a sample's JSON."""
    if SEVERAL_NEGATIVES in record:
        return _several(record[SEVERAL_NEGATIVES])
    return [] if record[NEGATIVE] is None else [record[NEGATIVE]]


def stated_images(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Path, width and height of each image in an item's JSON."""
    if SEVERAL_IMAGES in item:
        return _several(item[SEVERAL_IMAGES])
    return [] if item[IMAGE] is None else [item[IMAGE]]


def _several(values: Any) -> list[Mapping[str, Any]]:
    if not isinstance(values, list) or len(values) < 2:
        raise TypeError("not a list of several")
    return values


def _members(span: bytes, key: str) -> dict[str, bytes]:
    """Members of one sample by the part of their names after the key: "json", "qry.jpg", ...

    Reads only two fields of each USTAR header, because the checksum has verified the bytes: `tarfile` parses all
    sixteen and takes longer than the read, the checksum and the JSON together.
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
