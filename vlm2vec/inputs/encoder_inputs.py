"""The one way from an item to an encoder call: measure, tokenise, decode, crop, collate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.utils.data
from PIL import Image

from vlm2vec.backbones.phi3_v import Phi3VProcessor, ProcessedItem, collate_items
from vlm2vec.contrastive import Chunk
from vlm2vec.errors import InputError
from vlm2vec.inputs.items import EncodeItem, ItemImage, errors_of
from vlm2vec.inputs.packing import PackedItem

# English text has about four characters a token under the Phi-3 tokenizer. Only the ranks' balance depends on it.
CHARACTERS_PER_TOKEN = 4


class ItemEncoderInputs:
    """Makes the encoder's inputs from items, for `encode`, evaluation and training.

    `measure` says what an item takes without decoding it, for planning (`vlm2vec.inputs.packing`); `process` decodes an
    item; `collate` makes a chunk: tensors for the device, and values that stay on the host.

    Args:
        processor: Tokenises text and crops images.
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

    def measure(
        self, text: str, image_sizes: Sequence[tuple[int, int]], name: str, is_query: bool = False
    ) -> PackedItem:
        """What planning needs of an item, from its text and the sizes of its images.

        Args:
            text: Its text.
            image_sizes: (width, height) in pixels of each image.
            name: What messages call it.
            is_query: Whether it is the query side of a pair.

        Raises:
            InputError: Text and images do not fit together; the message names the item.
        """
        with errors_of(name):
            image_tokens = [self.processor.num_image_tokens(*size) for size in image_sizes]
            num_tokens = len(self.processor.tokenize(text, image_tokens, self.max_len))
            vision_units = sum(self.processor.num_crops_of(*size) for size in image_sizes)
            return PackedItem(num_tokens, vision_units, is_query)

    def measure_item(self, item: EncodeItem) -> PackedItem:
        """What planning needs of an item, from its text and the headers of its images; none is decoded.

        Raises:
            InputError: The item cannot be encoded; the message names it.
        """
        with errors_of(item.name):
            return self.measure(item.text, [image.size() for image in item.images], item.name)

    def process(self, item: EncodeItem) -> ProcessedItem:
        """Decodes and tokenises one item.

        Raises:
            InputError: An image or the text cannot be used; the message names the item.
        """
        with errors_of(item.name):
            return self.processor.process_item(item.text, [image.open() for image in item.images], self.max_len)

    def chunk_of(self, items: Sequence[EncodeItem]) -> Chunk:
        """One encoder call for some items.

        Raises:
            InputError: See `process`.
        """
        return self.chunk([self.process(item) for item in items], [item.name for item in items])

    def chunk(self, items: Sequence[ProcessedItem], names: Sequence[str] = ()) -> Chunk:
        """One encoder call for items that are processed."""
        num_crops = sum(len(item.pixel_values) for item in items if item.pixel_values is not None)
        return self.collate(items, num_crops, names)

    def collate(self, items: Iterable[ProcessedItem], vision_units: int, names: Sequence[str] = ()) -> Chunk:
        """One encoder call for items that are processed one after another, so that only one's images are held twice.

        Args:
            items: At least one.
            vision_units: Crops of all their images, or more.
            names: What messages call them.
        """
        pixels = _Pixels(vision_units, self.pixel_dtype)
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

    def largest_item(self) -> ProcessedItem:
        """An image with all the crops that an image may have, and the default prompt."""
        image = Image.new("RGB", self.processor.largest_image_size)
        return self.process(EncodeItem("", (ItemImage(image, "image"),), "the largest item"))

    def padding_chunk(self) -> Chunk:
        """The smallest chunk: what a rank runs, with weight zero, where others have more chunks."""
        return self.chunk([self.processor.process_item("", [], self.max_len)])


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
