"""What a user may hand to `VLM2Vec.encode`, turned into the processor's inputs lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from io import IOBase
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from vlm2vec.errors import InputError
from vlm2vec.images.decode import open_image, read_header
from vlm2vec.item_rules import item_text
from vlm2vec.phi3_v import Phi3VProcessor, ProcessedItem

# An image: already decoded, a path, or a file's bytes.
Picture: TypeAlias = Image.Image | str | Path | bytes
_IMAGE_KINDS = (Image.Image, str, Path, bytes)
# What is iterable but is one thing, not a list of things.
_SINGLE = (*_IMAGE_KINDS, bytearray, memoryview, IOBase)
# What is sized but can be neither an image nor several of them.
_NO_IMAGES = (bytearray, memoryview, Mapping)


@dataclass(frozen=True)
class EncodeItem:
    """One item of a list: its text and its images, not yet opened. `index` is its place, for messages."""

    index: int
    text: str
    pictures: tuple[Picture, ...]

    def num_tokens(self, processor: Phi3VProcessor, max_len: int | None) -> int:
        """Tokens of the item, from the text and the images' headers; no image is decoded.

        Raises:
            InputError: The item cannot be encoded; the message names its place.
        """
        with _errors_of_item(self.index):
            image_tokens = [processor.num_image_tokens(*_size_of(picture)) for picture in self.pictures]
            return len(processor.tokenize(self.text, image_tokens, max_len))

    def process(self, processor: Phi3VProcessor, max_len: int | None) -> ProcessedItem:
        """Opens the images and makes the model's inputs.

        Raises:
            InputError: The item cannot be encoded; the message names its place.
        """
        with _errors_of_item(self.index):
            images = [
                picture if isinstance(picture, Image.Image) else open_image(picture, _name_of(picture))
                for picture in self.pictures
            ]
            return processor.process_item(self.text, images, max_len)


def make_items(
    texts: Sequence[str | None] | None, images: Sequence[Picture | Sequence[Picture] | None] | None
) -> list[EncodeItem]:
    """Pairs texts and images up by their place in the two sequences.

    Args:
        texts, images: Lists, tuples, numpy arrays, columns of pandas, Arrow or Hugging Face data sets: anything with a
            length and an order. A column's labels are not looked at. Missing values (None, NaN, NA) mean none.

    Raises:
        InputError: A single item instead of a list, what has no order (a set, a dictionary) or no length (a generator),
            lists of different lengths, or an entry that is no text or image.
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
    return [_make_item(index, *pair) for index, pair in enumerate(zip(all_texts, all_images, strict=True))]


def in_order(name: str, values: Any, entry: str = "item") -> list[Any]:
    """The values of a sequence in the order in which they are iterated over, never looked up by label.

    Args:
        name: What messages call the sequence.
        values: See `make_items`.
        entry: What messages call one of its values.

    Raises:
        InputError: See `make_items`.
    """
    if isinstance(values, _SINGLE):
        raise InputError(f"{name} must be a list, one entry an item, not a single {type(values).__name__}")
    if isinstance(values, (Set, Mapping)):
        raise InputError(f"{name} is a {type(values).__name__}, which has no order of items; give a list")
    if not isinstance(values, Sized) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} is a {type(values).__name__}, which has no length; give a list, as in list(...)")
    if getattr(values, "ndim", 1) != 1:
        raise InputError(
            f"{name} is a {type(values).__name__} of {getattr(values, 'ndim', 1)} dimensions; give a list or one "
            "column, one entry an item (PIL.Image.fromarray makes an image of an array of pixels)"
        )
    entries: list[Any] = []
    try:
        for value in values:
            entries.append(_plain(value))
    except Exception as error:  # a column that decodes on demand raises whatever its entry triggers
        raise InputError(f"{entry} {len(entries)}: {name} cannot be read ({_one_line(error)})") from error
    return entries


def _plain(value: Any) -> Any:
    """An entry without the wrapper of the library that it comes from; None for a missing value."""
    if hasattr(value, "as_py"):  # an Arrow scalar
        value = value.as_py()
    is_missing = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    return None if is_missing else value


def _make_item(index: int, text: Any, images: Any) -> EncodeItem:
    with _errors_of_item(index):
        if text is not None and not isinstance(text, str):
            raise InputError(f"a text must be a string, not {type(text).__name__}")
        if images is None:
            pictures: tuple[Picture, ...] = ()
        elif isinstance(images, _IMAGE_KINDS):
            pictures = (images,)
        elif isinstance(images, Sized) and getattr(images, "ndim", 1) == 1 and not isinstance(images, _NO_IMAGES):
            pictures = tuple(_checked_image(image) for image in in_order("its images", images, "image"))
        else:
            pictures = (_checked_image(images),)
        return EncodeItem(index, item_text(str(text or ""), len(pictures)), pictures)


def _checked_image(image: Any) -> Picture:
    """One image.

    Raises:
        InputError: Something else.
    """
    if isinstance(image, _IMAGE_KINDS):
        return image
    remedy = ""
    if hasattr(image, "ndim"):
        remedy = "; PIL.Image.fromarray makes an image of an array of pixels"
    elif isinstance(image, (IOBase, bytearray, memoryview)):
        remedy = "; give its content as bytes"
    raise InputError(f"an image must be a PIL image, a path or bytes, not {type(image).__name__}{remedy}")


@contextmanager
def _errors_of_item(index: int) -> Iterator[None]:
    """Whatever one item raises becomes an `InputError` that names it: a list may have a million."""
    try:
        yield
    except InputError as error:
        raise InputError(f"item {index}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow and the tokenizer raise whatever the item happens to trigger
        raise InputError(f"item {index}: cannot be encoded ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _name_of(picture: Picture) -> str:
    return "<bytes>" if isinstance(picture, bytes) else str(picture)


def _size_of(picture: Picture) -> tuple[int, int]:
    if isinstance(picture, Image.Image):
        return picture.size
    if isinstance(picture, bytes):
        header = read_header(picture, "<bytes>")
    else:
        path = Path(picture)
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise InputError(f"{picture}: not a file")
            header = read_header(path.read_bytes(), str(picture))
        except (OSError, ValueError) as error:
            raise InputError(f"{picture}: cannot read the image ({error})") from error
    return header.width, header.height


def plan_batches(lengths: Sequence[int], batch_tokens: int, keep_order: bool = False) -> list[list[int]]:
    """Groups items so that a padded batch (rows x longest) stays within `batch_tokens`; one item always fits.

    Args:
        lengths: tokens of each item.
        batch_tokens: the budget.
        keep_order: batches of neighbours in the given order; otherwise longest first, so that padding is small and an
            out-of-memory error comes at once.
    """
    order = range(len(lengths)) if keep_order else sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches
