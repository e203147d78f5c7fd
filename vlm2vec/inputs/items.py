"""Items to encode (text, images, instruction), not yet decoded, as encoding, evaluation and training pass them on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm2vec.errors import InputError
from vlm2vec.images.decode import open_image, read_header

Pixels: TypeAlias = npt.NDArray[np.uint8]  # (height, width, 3), or (height, width) of grey
# An image: already decoded, a path, or a file's bytes.
ImageSource: TypeAlias = Image.Image | str | Path | bytes | Pixels


@dataclass(frozen=True)
class ItemImage:
    """An image of an item, decoded only when it is needed.

    Attributes:
        source: The decoded image, or what it is read from.
        name: Name of the image in messages.
    """

    source: ImageSource
    name: str

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the header of a file.

        Raises:
            InputError: The file cannot be read, or is no image.
        """
        if isinstance(self.source, Image.Image):
            return self.source.size
        if isinstance(self.source, np.ndarray):
            return self.source.shape[1], self.source.shape[0]
        if isinstance(self.source, bytes):
            header = read_header(self.source, self.name)
        else:
            path = Path(self.source)
            try:
                if path.exists() and not path.is_file():  # reading a pipe could block forever
                    raise InputError(f"{self.name}: not a file")
                header = read_header(path.read_bytes(), self.name)
            except (OSError, ValueError) as error:
                raise InputError(f"{self.name}: cannot read the image ({error})") from error
        return header.width, header.height

    def open(self, keep_alpha: bool = False) -> Image.Image:
        """The decoded image.

        Args:
            keep_alpha: See `open_image`.

        Raises:
            InputError: See `open_image`.
        """
        if isinstance(self.source, Image.Image):
            return self.source
        if isinstance(self.source, np.ndarray):
            return Image.fromarray(self.source)
        return open_image(self.source, self.name, keep_alpha)


@dataclass(frozen=True)
class EncodeItem:
    """An item to encode.

    Attributes:
        text: Text of the item, "" if it has none; the processor builds the prompt from it.
        images: Images in the order of the text's tags <|image_1|>, <|image_2|>, ...
        name: Name of the item in messages.
        instruction: Instruction for a prompt format that has a place for one; None: the format's.
    """

    text: str
    images: tuple[ItemImage, ...]
    name: str
    instruction: str | None = None


def named_images(sources: Sequence[ImageSource], name: str) -> tuple[ItemImage, ...]:
    """Wraps an item's images and names them after it; several images are numbered as in the text's tags."""
    if len(sources) == 1:
        return (ItemImage(sources[0], name),)
    return tuple(ItemImage(source, f"{name}: image {number}") for number, source in enumerate(sources, start=1))


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Turns any exception that an item raises into an `InputError` that names the item, one of perhaps a million."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise InputError(f"{name}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow and the tokenizer raise whatever the item happens to trigger
        raise InputError(f"{name}: cannot be encoded ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    """An exception's class and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
