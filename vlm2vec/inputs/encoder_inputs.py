"""Turns items into encoder calls, for encoding, evaluation and training alike: measure, process, collate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from PIL import Image

from vlm2vec.backbones.interface import ItemProcessor, ProcessedItem
from vlm2vec.contrastive import Chunk
from vlm2vec.errors import InputError
from vlm2vec.inputs.items import EncodeItem, ItemImage, errors_of
from vlm2vec.inputs.packing import PackedItem

# English text has about four characters per token under common tokenizers. Only the ranks' balance depends on this.
CHARACTERS_PER_TOKEN = 4


class ItemEncoderInputs:
    """Makes the encoder's inputs from items, for `encode`, evaluation and training.

    `measure` returns an item's size without decoding it, for planning (`vlm2vec.inputs.packing`); `process` decodes an
    item; `collate` makes a chunk: tensors for the device, and values that stay on the host.

    Args:
        processor: The model family's processor.
        max_len: Longest text-only item in tokens (`--max_len`).
        pixel_dtype: Dtype of the pixels of a chunk; the compute dtype, so that bf16 halves their memory.
        always_dummy: Every chunk without images runs a dummy image; needed where only modules that images pass
            through are trained (`Backbone.trains_images_alone`): a text would have no gradient path otherwise.
    """

    def __init__(
        self,
        processor: ItemProcessor,
        max_len: int | None,
        pixel_dtype: torch.dtype = torch.float32,
        always_dummy: bool = False,
    ) -> None:
        self.processor = processor
        self.max_len = max_len
        self.pixel_dtype = pixel_dtype
        self.always_dummy = always_dummy
        self._several_images: tuple[tuple[int, int], ...] = ()

    def cost(self, text_length: int, image_sizes: Sequence[tuple[int, int]]) -> int:
        """Estimates the tokens of an item from its text's length in characters and its images' sizes in pixels."""
        text = 1 + (text_length + self.processor.prompt_format.num_added_characters) // CHARACTERS_PER_TOKEN
        if image_sizes:
            try:
                tokens = sum(self.processor.num_image_tokens(*size) for size in image_sizes)
                counted = image_sizes if self.processor.tokens_per_vision_unit else ()
                return text + tokens + self._vision_tokens(sum(self.processor.num_vision_units(*s) for s in counted))
            except InputError:
                return text  # an impossible image, such as 1 x 300: planning the item reports it
        return min(text, self.max_len) if self.max_len else text

    def measure(
        self,
        text: str,
        image_sizes: Sequence[tuple[int, int]],
        name: str,
        is_query: bool = False,
        instruction: str | None = None,
    ) -> PackedItem:
        """Measures an item for planning, from its text and the sizes of its images.

        Args:
            text: Text of the item.
            image_sizes: (width, height) in pixels of each image.
            name: Name of the item in messages.
            is_query: Whether the item is the query of a pair.
            instruction: The item's instruction; None: the prompt format's.

        Raises:
            InputError: Text and images do not fit together; the message names the item.
        """
        with errors_of(name):
            image_tokens = [self.processor.num_image_tokens(*size) for size in image_sizes]
            num_tokens = len(self.processor.tokenize(text, image_tokens, self.max_len, instruction))
            units = [self.processor.num_vision_units(*size) for size in image_sizes]
            squared = sum(number**2 for number in units)
            return PackedItem(num_tokens, sum(units), is_query, self._vision_tokens(sum(units)), squared)

    def _vision_tokens(self, vision_units: int) -> int:
        return math.ceil(self.processor.tokens_per_vision_unit * vision_units)

    def measure_item(self, item: EncodeItem) -> PackedItem:
        """Measures an item for planning, from its text and the headers of its images; none is decoded.

        Raises:
            InputError: The item cannot be encoded; the message names it.
        """
        with errors_of(item.name):
            sizes = [image.size() for image in item.images]
            return self.measure(item.text, sizes, item.name, instruction=item.instruction)

    def process(self, item: EncodeItem) -> ProcessedItem:
        """Decodes and tokenises one item.

        Raises:
            InputError: An image or the text cannot be used; the message names the item.
        """
        with errors_of(item.name):
            keep_alpha = self.processor.prompt_format.transparency == "white"
            images = [image.open(keep_alpha) for image in item.images]
            return self.processor.process_item(item.text, images, self.max_len, item.instruction)

    def chunk_of(self, items: Sequence[EncodeItem]) -> Chunk:
        """Processes and collates items into one encoder call.

        Raises:
            InputError: See `process`.
        """
        return self.chunk([self.process(item) for item in items], [item.name for item in items])

    def chunk(self, items: Sequence[ProcessedItem], names: Sequence[str] = ()) -> Chunk:
        """Collates processed items into one encoder call."""
        return self.collate(items, sum(item.vision_units for item in items), names)

    def collate(self, items: Iterable[ProcessedItem], vision_units: int, names: Sequence[str] = ()) -> Chunk:
        """Collates an iterable of processed items into one encoder call; only one item's images are in memory twice.

        Args:
            items: Processed items, at least one; they may be made while they are iterated over.
            vision_units: Number of vision units of all their images, or an upper bound.
            names: Names of the items in messages.
        """
        made = self.processor.collate(items, vision_units, self.pixel_dtype)
        return Chunk(
            {**made.tensors, **made.dummy} if self.always_dummy else made.tensors,
            made.num_items,
            made.has_image,
            host_inputs=made.host_values,
            dummy_inputs=made.dummy,
            names=tuple(names),
        )

    def expect(self, image_sizes: Sequence[tuple[int, int]]) -> None:
        """Makes `largest_item` consider an item with several images of these sizes (width, height) in pixels."""
        self._several_images = tuple(image_sizes)

    def largest_item(self) -> ProcessedItem:
        """The item that takes the most memory: a blank image of the largest size, or the several of `expect`."""
        items = [self._blank_images([self.processor.largest_image_size])]
        if self._several_images:
            items.append(self._blank_images(self._several_images))
        return max(items, key=self.budget_tokens)

    def _blank_images(self, sizes: Sequence[tuple[int, int]]) -> ProcessedItem:
        images = tuple(ItemImage(Image.new("RGB", size), "image") for size in sizes)
        tags = "".join(f"<|image_{number}|>" for number in range(1, len(images) + 1)) if len(images) > 1 else ""
        return self.process(EncodeItem(tags, images, "the largest item"))

    def budget_tokens(self, item: ProcessedItem) -> int:
        """Number of tokens that an item takes of a chunk's budget."""
        return len(item.input_ids) + self._vision_tokens(item.vision_units)

    def padding_chunk(self) -> Chunk:
        """The smallest chunk: a rank runs it with weight zero while other ranks have more chunks."""
        return self.chunk([self.processor.process_item("", [], self.max_len)])
