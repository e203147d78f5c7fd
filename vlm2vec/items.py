"""What a user may hand to `VLM2Vec.encode`, turned into the processor's inputs lazily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from vlm2vec.errors import InputError
from vlm2vec.images import open_image, read_header
from vlm2vec.phi3_v import Phi3VProcessor, ProcessedItem

# A picture: already decoded, a path, or a file's bytes.
Picture: TypeAlias = Image.Image | str | Path | bytes

# The benchmark's own prompt for a candidate that is only a picture.
IMAGE_ONLY_TEXT = "<|image_1|> Represent the given image."


@dataclass(frozen=True)
class EncodeItem:
    """One item of a list: its text and its pictures, not yet opened. `index` is its place, for messages."""

    index: int
    text: str
    pictures: tuple[Picture, ...]

    def num_tokens(self, processor: Phi3VProcessor, max_len: int | None) -> int:
        """Tokens of the item, from the text and the pictures' headers; no picture is decoded."""
        try:
            sizes = [_size_of(picture) for picture in self.pictures]
            image_tokens = [processor.num_image_tokens(*size) for size in sizes]
            return len(processor.tokenize(self.text, image_tokens, max_len))
        except InputError as error:
            raise InputError(f"item {self.index}: {error}") from error

    def process(self, processor: Phi3VProcessor, max_len: int | None) -> ProcessedItem:
        """Opens the pictures and makes the model's inputs."""
        try:
            pictures = [
                picture if isinstance(picture, Image.Image) else open_image(picture, _name_of(picture))
                for picture in self.pictures
            ]
            return processor.process_item(self.text, pictures, max_len)
        except InputError as error:
            raise InputError(f"item {self.index}: {error}") from error


def make_items(
    texts: Sequence[str | None] | None, images: Sequence[Picture | Sequence[Picture] | None] | None
) -> list[EncodeItem]:
    """Pairs texts and pictures up.

    Raises:
        InputError: a bare string instead of a list, lists of different lengths, or what is no text or picture.
    """
    for name, value in (("texts", texts), ("images", images)):
        if isinstance(value, (str, bytes, Path, Image.Image)):
            raise InputError(f"{name} must be a list, one entry an item, not a single {type(value).__name__}")
    if texts is None and images is None:
        raise InputError("give texts, images or both")
    if texts is not None and images is not None and len(texts) != len(images):
        raise InputError(f"{len(texts)} texts but {len(images)} images; use None where an item has no image")
    count = len(texts) if texts is not None else len(images or ())
    return [
        _make_item(index, texts[index] if texts is not None else None, images[index] if images is not None else None)
        for index in range(count)
    ]


def _make_item(index: int, text: str | None, images: Picture | Sequence[Picture] | None) -> EncodeItem:
    if text is not None and not isinstance(text, str):
        raise InputError(f"item {index}: a text must be a string, not {type(text).__name__}")
    if images is None:
        pictures: tuple[Picture, ...] = ()
    elif isinstance(images, (Image.Image, str, Path, bytes)):
        pictures = (images,)
    elif isinstance(images, (list, tuple)):
        pictures = tuple(images)
    else:
        raise InputError(f"item {index}: an image must be a PIL image, a path or bytes, not {type(images).__name__}")
    if not text and len(pictures) == 1:
        text = IMAGE_ONLY_TEXT
    return EncodeItem(index, text or "", pictures)


def _name_of(picture: Picture) -> str:
    return "<bytes>" if isinstance(picture, bytes) else str(picture)


def _size_of(picture: Picture) -> tuple[int, int]:
    if isinstance(picture, Image.Image):
        return picture.size
    if isinstance(picture, bytes):
        header = read_header(picture, "<bytes>")
    elif isinstance(picture, (str, Path)):
        try:
            header = read_header(Path(picture).read_bytes(), str(picture))
        except (OSError, ValueError) as error:
            raise InputError(f"{picture}: cannot read the picture ({error})") from error
    else:
        raise InputError(f"an image must be a PIL image, a path or bytes, not {type(picture).__name__}")
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
