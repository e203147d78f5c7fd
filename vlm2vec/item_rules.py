"""Rules that every encodable item meets, whatever the processor; shared by the converter and processors (no torch)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from vlm2vec.errors import InputError
from vlm2vec.messages.words import counted

# How a text names its images: <|image_1|>, <|image_2|>, ...
IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")

# MMEB's prompt for a candidate that is only an image.
IMAGE_ONLY_TEXT = "<|image_1|> Represent the given image."

# Images are resized to a few hundred pixels, where too little is left of a longer strip; some families' original
# processors refuse more too.
MAX_ASPECT_RATIO = 200

_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # Unicode categories: control, format, separators
_MAX_TAG_DIGITS = 9  # Python refuses to convert thousands of digits
_SHOWN_TAGS = 5
_EMPTY = "empty: neither text nor image"


def check_item(text: str, image_sizes: Sequence[tuple[int, int]]) -> None:
    """Refuses an item that no processor can encode, or whose vector would carry no information.

    Args:
        text: The item's text, "" if it has none. One image without text is legal: it gets the default prompt.
        image_sizes: (width, height) of its images in pixels.

    Raises:
        InputError: It has neither text nor image, images and tags do not match, or an image is too thin.
    """
    refuse_empty(text, len(image_sizes))
    for size in image_sizes:
        check_shape(*size)
    if image_sizes:
        image_tags(text or (IMAGE_ONLY_TEXT if len(image_sizes) == 1 else ""), len(image_sizes))


def refuse_empty(text: str, num_images: int) -> None:
    """Refuses an item whose vector would carry no information.

    Args:
        text: The item's text, "" if it has none.
        num_images: Number of its images.

    Raises:
        InputError: It has neither text nor image.
    """
    if not num_images and says_nothing(text):
        raise InputError(f"the text {shorten(text)!r} has no content and there is no image" if text else _EMPTY)


def says_nothing(text: str) -> bool:
    """Whether a text has no content: only image tags, white space or zero-width characters."""
    return all(unicodedata.category(character) in _INVISIBLE for character in IMAGE_TAG.sub("", text))


def check_shape(width: int, height: int) -> None:
    """Refuses an image (sizes in pixels) with one side more than `MAX_ASPECT_RATIO` times the other.

    Raises:
        InputError: The image is too thin.
    """
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InputError(
            f"an image of {width} x {height} pixels is too thin (at most {MAX_ASPECT_RATIO} to 1); trim it or leave it "
            "out"
        )


def image_tags(text: str, num_images: int) -> list[int]:
    """Numbers of a text's image tags in their order, for an item with `num_images` images.

    Raises:
        InputError: The tags are not exactly one each of `<|image_1|>` to `<|image_n|>`.
    """
    found = IMAGE_TAG.findall(text)
    numbers = [int(digits) if len(digits) <= _MAX_TAG_DIGITS else 0 for digits in found]
    if sorted(numbers) != list(range(1, num_images + 1)):
        shown = ", ".join(f"<|image_{shorten(digits, 12)}|>" for digits in found[:_SHOWN_TAGS]) or "no image tag"
        more = f" and {len(found) - _SHOWN_TAGS} more" if len(found) > _SHOWN_TAGS else ""
        raise InputError(
            f"an item with {counted(num_images, 'image')} has {shown}{more} in its text {shorten(text)!r}; "
            "each image k needs its tag <|image_k|> exactly once"
        )
    return numbers


def with_frames(text: str, num_frames: int) -> str:
    """Turns a text about one image into one about the frames of a clip: its tag becomes one tag per frame.

    Args:
        text: The item's text with the tag `<|image_1|>`; "" means an image alone.
        num_frames: Number of frames; with one frame the text does not change.
    """
    if num_frames < 2:
        return text
    tags = "".join(f"<|image_{number}|>" for number in range(1, num_frames + 1))
    return IMAGE_TAG.sub(tags, text or IMAGE_ONLY_TEXT, count=1)


def shorten(text: str, limit: int = 60) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= limit else text[:limit] + "..."
