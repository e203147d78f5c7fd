"""Turns a row of the user's data into query, target and hard negatives, and adds image markers to their texts."""

from __future__ import annotations

import argparse
import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

from data_prep.rows import RawImage, RawItem, RawPair, RowError
from vlm2vec.item_rules import IMAGE_TAG, says_nothing, shorten
from vlm2vec.messages.words import counted

_LEADING_TAGS = re.compile(rf"(?:{IMAGE_TAG.pattern}\s*)*")


def pair_of(values: Mapping[str, Any], place: str, instruction: str | None = None) -> RawPair:
    """Returns a row's items.

    Args:
        values: The values by field (see `columns.FIELDS`), as read from JSON, CSV or Arrow.
        place: File and row, for the names of images that are given as bytes.
        instruction: Put before the text of every query.

    Raises:
        RowError: A value has the wrong type, bytes are not text, or the numbers of negative texts and images differ.
    """
    pair = unmarked_pair(values, place)
    negatives = tuple(_marked(negative) for negative in pair.negatives)
    return RawPair(_marked(pair.query, instruction), _marked(pair.positive), negatives)


def unmarked_pair(values: Mapping[str, Any], place: str) -> RawPair:
    """Returns a row's items with their texts unchanged; see `pair_of`."""
    query = RawItem(_text(values, "query"), _images(values, "query_image", place))
    positive = RawItem(_text(values, "positive"), _images(values, "positive_image", place))
    return RawPair(query, positive, tuple(_negatives(values, place)))


def instruction(text: str) -> str:
    """Parses an instruction; for argparse's `type=`."""
    if says_nothing(text) or IMAGE_TAG.search(text):
        raise argparse.ArgumentTypeError(f"{shorten(text)!r}: an instruction must contain words, and no image markers")
    return text.strip()


def _negatives(values: Mapping[str, Any], place: str) -> list[RawItem]:
    """The hard negatives: one, or one per list entry."""
    text, image = values.get("negative"), values.get("negative_image")
    texts = _each(text, lambda value: _as_text(value, "negative"))
    images = _each(image, lambda value: _as_images(value, "negative_image", place))
    if not isinstance(image, list):
        images = [] if images == [()] else images
    if not images:
        images = [()] * len(texts)
    elif not isinstance(text, list):
        texts = texts * len(images)  # one text is used for all images
    if len(texts) != len(images):
        raise RowError(f"negative has {counted(len(texts), 'text')} and {counted(len(images), 'image')}")
    items = [RawItem(*item) for item in zip(texts, images, strict=True)]
    return [item for item in items if item.images or not says_nothing(item.text)]


def _each(value: Any, read: Callable[[Any], Any]) -> list[Any]:
    return [read(each) for each in value] if isinstance(value, list) else [read(value)]


def _text(values: Mapping[str, Any], field: str) -> str:
    return _as_text(values.get(field), field)


def _as_text(value: Any, field: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    if not isinstance(value, str):
        raise RowError(f"{field} is {_kind(value)}, not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(f"{field} is not valid Unicode (is the file UTF-8?)") from error
    return value


def _images(values: Mapping[str, Any], field: str, place: str) -> tuple[RawImage, ...]:
    return _as_images(values.get(field), field, place)


def _as_images(value: Any, field: str, place: str) -> tuple[RawImage, ...]:
    several = value if isinstance(value, list) else [value]
    images = []
    for number, each in enumerate(several, start=1):
        name = f"{place}, {field}" + (f" {number}" if len(several) > 1 else "")
        image = _as_image(each, field, name)
        if image is None and isinstance(value, list):
            raise RowError(f"image {number} of {field} is missing")
        if image is not None:
            images.append(image)
    return tuple(images)


def _as_image(value: Any, field: str, name: str) -> RawImage | None:
    """Reads a path, bytes, or `{bytes, path}`, where bytes take precedence; in JSON they are base64."""
    if value is None or value in ("", b""):
        return None
    if isinstance(value, dict):
        if not value.keys() <= {"bytes", "path"}:
            raise RowError(f"{field} has {', '.join(map(shorten, value))}; an image is a path or {{bytes, path}}")
        data, path = value.get("bytes"), _as_text(value.get("path"), field)
        if data is None:
            return RawImage(path) if path else None
        return RawImage(f"{name} ({shorten(path)})" if path else name, _as_bytes(data, field))
    if isinstance(value, bytes):
        return RawImage(name, value)
    if not isinstance(value, str):
        raise RowError(f"{field} is {_kind(value)}, not an image's path or bytes")
    return RawImage(_as_text(value, field))


def _as_bytes(data: Any, field: str) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise RowError(f"bytes of {field} are not base64") from error


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list"}
    return f"{names.get(type(value), type(value).__name__)} ({shorten(str(value))})"


def _marked(item: RawItem, instruction: str | None = None) -> RawItem:
    """Puts image markers at the front of a text without markers, and the instruction after the markers at the front.

    A single image without text and instruction gets no marker: its prompt is `item_rules.IMAGE_ONLY_TEXT`.
    """
    text, count = item.text, len(item.images)
    if count and says_nothing(text) and not IMAGE_TAG.search(text):
        text = ""
    tags = ""
    if count and not IMAGE_TAG.search(text) and (count > 1 or text or instruction):
        tags = "".join(f"<|image_{number}|> " for number in range(1, count + 1))
    if instruction:
        if count and not tags and (leading := _LEADING_TAGS.match(text)):
            tags, text = leading[0], text[leading.end() :]
        text = f"{instruction} {text}" if text else instruction
    return RawItem((tags + text).rstrip(" ") if tags and not text else tags + text, item.images)
