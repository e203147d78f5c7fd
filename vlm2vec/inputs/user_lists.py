"""Converts what users pass to `VLM2Vec.encode` to items: sequences of texts and images from many libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set, Sized
from io import IOBase
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.inputs.items import EncodeItem, ImageSource, ItemImage, errors_of, one_line
from vlm2vec.inputs.urls import is_url, refuse_url

_IMAGE_KINDS = (Image.Image, str, Path, bytes)
# Types that are iterable but are one value, not a list of values.
_SINGLE = (*_IMAGE_KINDS, bytearray, memoryview, IOBase)
# Types that have a length but can be neither an image nor a list of images.
_NO_IMAGES = (bytearray, memoryview, Mapping)


def make_items(
    texts: Sequence[str | None] | None,
    images: Sequence[ImageSource | Sequence[ImageSource] | None] | None,
    prompt_format: PromptFormat,
    instruction: str | Sequence[str | None] | None = None,
    allow_urls: bool = False,
) -> list[EncodeItem]:
    """Makes items of texts and images that have the same position in the two sequences.

    Args:
        texts, images: Lists, tuples, numpy arrays, columns of pandas, Arrow or Hugging Face datasets: anything with a
            length and an order. A column's labels are ignored. A missing value (None, NaN, NA) means no text or image.
        prompt_format: Prompt format of the model.
        instruction: One for all items, or a sequence like `texts`.
        allow_urls: Accept http and https URLs as images; `vlm2vec.inputs.urls.downloaded` fetches them.

    Raises:
        InputError: An argument is a single item, or has no order (a set, a dictionary) or no length (a generator), the
            lists differ in length, or an entry is no text or image.
    """
    if texts is None and images is None:
        raise InputError("give texts, images or both")
    all_texts = in_order("texts", texts) if texts is not None else None
    all_images = in_order("images", images) if images is not None else None
    if all_texts is None:
        all_texts = [None] * len(all_images or ())
    if all_images is None:
        all_images = [None] * len(all_texts)
    if len(all_texts) != len(all_images):
        raise InputError(f"{len(all_texts)} texts but {len(all_images)} images; use None where an item has no image")
    instructions = _instructions(instruction, len(all_texts))
    items = []
    for index, (text, image, own) in enumerate(zip(all_texts, all_images, instructions, strict=True)):
        with errors_of(f"item {index}"):
            item = _make_item(f"item {index}", text, image, own)
            for each in item.images:
                if is_url(each.source):
                    refuse_url(str(each.source), allow_urls)
            prompt_format.refuse_empty(item.text, len(item.images))
            items.append(item)
    return items


def _instructions(instruction: str | Sequence[str | None] | None, count: int) -> list[Any]:
    """The instruction of each item.

    Raises:
        InputError: See `make_items`.
    """
    if instruction is None or isinstance(instruction, str):
        return [instruction] * count
    listed = in_order("instruction", instruction)
    if len(listed) != count:
        raise InputError(
            f"{count} items but {len(listed)} instructions; give one for all items, or None for items without one"
        )
    return listed


def in_order(name: str, values: Any, entry: str = "item") -> list[Any]:
    """Lists the values of a sequence by iterating over it, never by label.

    Args:
        name: Name of the sequence in messages.
        values: See `make_items`.
        entry: Name of one of its values in messages.

    Raises:
        InputError: See `make_items`.
    """
    if isinstance(values, _SINGLE):
        raise InputError(f"{name} must be a list with one entry per item, not a single {type(values).__name__}")
    if isinstance(values, (Set, Mapping)):
        raise InputError(f"{name} is a {type(values).__name__}, which has no order of items; give a list")
    if not isinstance(values, Sized) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} is a {type(values).__name__}, which has no length; give a list, as in list(...)")
    if getattr(values, "ndim", 1) != 1:
        raise InputError(
            f"{name} is a {type(values).__name__} of {getattr(values, 'ndim', 1)} dimensions; give a list or one "
            "column, one entry per item (PIL.Image.fromarray converts an array of pixels to an image)"
        )
    entries: list[Any] = []
    try:
        for value in values:
            entries.append(_plain(value))
    except Exception as error:  # a column that decodes on demand raises whatever its entry triggers
        raise InputError(f"{entry} {len(entries)}: {name} cannot be read ({one_line(error)})") from error
    return entries


def _plain(value: Any) -> Any:
    """Unwraps an entry of the library that it comes from; None for a missing value."""
    if hasattr(value, "as_py"):  # an Arrow scalar
        value = value.as_py()
    is_missing = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    return None if is_missing else value


def _make_item(name: str, text: Any, images: Any, instruction: Any) -> EncodeItem:
    for each, kind in ((text, "a text"), (instruction, "an instruction")):
        if each is not None and not isinstance(each, str):
            raise InputError(f"{kind} must be a string, not {type(each).__name__}")
    if images is None:
        sources: tuple[ImageSource, ...] = ()
    elif isinstance(images, _IMAGE_KINDS):
        sources = (images,)
    elif isinstance(images, Sized) and getattr(images, "ndim", 1) == 1 and not isinstance(images, _NO_IMAGES):
        sources = tuple(_checked_image(image) for image in in_order("its images", images, "image"))
    else:
        sources = (_checked_image(images),)
    own = None if instruction is None else str(instruction)
    return EncodeItem(str(text or ""), tuple(_item_image(source) for source in sources), name, own)


def _checked_image(image: Any) -> ImageSource:
    """Checks that a value is an image.

    Raises:
        InputError: It is anything else.
    """
    if isinstance(image, _IMAGE_KINDS) or _is_pixels(image):
        return image  # type: ignore[no-any-return]
    remedy = ""
    if hasattr(image, "ndim"):
        remedy = "; PIL.Image.fromarray converts an array of pixels to an image"
        if isinstance(image, np.ndarray):
            shape = " x ".join(str(side) for side in image.shape)
            remedy += f" ({image.dtype} of {shape}; uint8 of height x width x 3 or height x width is accepted as it is)"
    elif isinstance(image, (IOBase, bytearray, memoryview)):
        remedy = "; pass its content as bytes"
    raise InputError(f"an image must be a PIL image, a path or bytes, not {type(image).__name__}{remedy}")


def _is_pixels(image: Any) -> bool:
    is_bytes = isinstance(image, np.ndarray) and image.dtype == np.uint8
    return is_bytes and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))


def _item_image(source: ImageSource) -> ItemImage:
    if isinstance(source, np.ndarray):
        return ItemImage(source, "<array>")
    return ItemImage(source, "<bytes>" if isinstance(source, bytes) else str(source))
