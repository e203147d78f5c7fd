"""The encoder's inputs from items: tokenise, decode, crop, collate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils.data

from vlm2vec.contrastive import Chunk
from vlm2vec.errors import InputError
from vlm2vec.images.decode import open_image
from vlm2vec.phi3_v import Phi3VProcessor, ProcessedItem, collate_items
from vlm2vec.shards import Item

# English text has about four characters a token under the Phi-3 tokenizer. Only the ranks' balance depends on it.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class NamedItem:
    """An item as it was read, its picture undecoded, with the name that messages use."""

    item: Item
    name: str


class ItemEncoderInputs:
    """Makes the encoder's inputs from items.

    Args:
        processor: Tokenises text and crops pictures.
        max_len: Longest text-only item in tokens (`--max_len`).
        pixel_dtype: Dtype in which crops wait for their turn; the compute dtype, so that bf16 halves their memory.
    """

    def __init__(
        self, processor: Phi3VProcessor, max_len: int | None, pixel_dtype: torch.dtype = torch.float32
    ) -> None:
        self.processor = processor
        self.max_len = max_len
        self.pixel_dtype = pixel_dtype

    def cost(self, text_length: int, width: int, height: int) -> int:
        """Estimated tokens of an item from its index entry; width 0 means no image."""
        text = 1 + text_length // CHARACTERS_PER_TOKEN
        if width:
            try:
                return text + self.processor.num_image_tokens(width, height)
            except InputError:
                return text  # an image that cannot be cut, such as 1 x 300: whoever plans the item reports it
        return min(text, self.max_len) if self.max_len else text

    def num_tokens(self, text: str, size: tuple[int, int] | None, name: str) -> int:
        """Tokens of an item with a picture of this size (width, height), or without one.

        Raises:
            InputError: Text and picture do not fit together; the message names the sample.
        """
        try:
            image_tokens = [] if size is None else [self.processor.num_image_tokens(*size)]
            return len(self.processor.tokenize(text, image_tokens, self.max_len))
        except MemoryError:
            raise
        except Exception as error:  # whatever one item sets off, a lone surrogate for instance, is that item's fault
            raise _named(error, name) from error

    def process(self, named: NamedItem) -> ProcessedItem:
        """Decodes and tokenises one item.

        Raises:
            InputError: The picture or the text cannot be used; the message names the sample.
        """
        item = named.item
        try:
            images = [open_image(item.image, named.name)] if item.image is not None else []
            return self.processor.process_item(item.text, images, self.max_len)
        except MemoryError:
            raise
        except Exception as error:
            raise _named(error, named.name) from error

    def chunk(self, items: Sequence[ProcessedItem], names: Sequence[str] = ()) -> Chunk:
        """One engine call for some items."""
        num_crops = sum(len(item.pixel_values) for item in items if item.pixel_values is not None)
        return self.chunk_of(items, num_crops, names)

    def chunk_of(self, items: Iterable[ProcessedItem], num_crops: int, names: Sequence[str] = ()) -> Chunk:
        """One engine call for items that are made one after another, so that only one picture is held twice.

        Args:
            items: At least one.
            num_crops: Crops of all their pictures, or more.
            names: What messages call them.
        """
        pixels = _Pixels(num_crops, self.pixel_dtype)
        texts = []
        for item in items:
            if item.pixel_values is not None:
                pixels.add(item.pixel_values)
            texts.append(replace(item, pixel_values=None))
            del item  # its crops, before the next one's are made
        inputs: dict[str, Any] = collate_items(texts, self.processor.pad_token_id)
        # The vision layout is computed on the host: on the device every call would wait for it.
        image_sizes = inputs.pop("image_sizes")
        inputs["pixel_values"] = pixels.joined
        return Chunk(inputs, len(texts), pixels.joined is not None, {"image_sizes": image_sizes}, tuple(names))

    def padding_chunk(self) -> Chunk:
        """The smallest chunk: what a rank runs, with weight zero, where others have more chunks."""
        return self.chunk([self.processor.process_item("", [], self.max_len)])


def _named(error: Exception, name: str) -> InputError:
    if not isinstance(error, InputError):
        return InputError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
    return error if name in str(error) else InputError(f"{name}: {error}")


class _Pixels:
    """The crops of a chunk, each written once to where it stays.

    A loader's worker hands tensors over in shared memory; joined elsewhere they would be copied there, half a gigabyte
    for a chunk of photographs. `torch.utils.data.default_collate` does the same for tensors of one shape.
    """

    def __init__(self, num_crops: int, dtype: torch.dtype) -> None:
        self._num_crops, self._dtype, self._filled = num_crops, dtype, 0
        self._all: torch.Tensor | None = None

    def add(self, crops: torch.Tensor) -> None:
        """Appends crops, shape (n, 3, S, S)."""
        if self._all is None:
            self._all = _empty((self._num_crops, *crops.shape[1:]), self._dtype)
        end = self._filled + len(crops)
        self._all[self._filled : end].copy_(crops)
        self._filled = end

    @property
    def joined(self) -> torch.Tensor | None:
        """What was added, shape (crops, 3, S, S); None if nothing was."""
        return None if self._all is None else self._all[: self._filled]


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]
