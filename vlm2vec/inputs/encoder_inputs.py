"""The one way from an item to an encoder call: measure, tokenise, decode, process, collate."""

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

# English text has about four characters a token under common tokenizers. Only the ranks' balance depends on it.
CHARACTERS_PER_TOKEN = 4


class ItemEncoderInputs:
    """Makes the encoder's inputs from items, for `encode`, evaluation and training.

    `measure` says what an item takes without decoding it, for planning (`vlm2vec.inputs.packing`); `process` decodes an
    item; `collate` makes a chunk: tensors for the device, and values that stay on the host.

    Args:
        processor: The model family's.
        max_len: Longest text-only item in tokens (`--max_len`).
        pixel_dtype: Dtype in which pixels wait for their turn; the compute dtype, so that bf16 halves their memory.
        always_dummy: Every chunk without images runs its dummy; for an encoder of which only what images reach is
            trained (`Backbone.trains_images_alone`): a text would have no gradient path otherwise.
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
        """Estimated tokens of an item from its index entry: characters of its text, width and height of its images."""
        text = 1 + (text_length + self.processor.prompt_format.num_added_characters) // CHARACTERS_PER_TOKEN
        if image_sizes:
            try:
                tokens = sum(self.processor.num_image_tokens(*size) for size in image_sizes)
                counted = image_sizes if self.processor.tokens_per_vision_unit else ()
                return text + tokens + self._vision_tokens(sum(self.processor.num_vision_units(*s) for s in counted))
            except InputError:
                return text  # an image that cannot be cut, such as 1 x 300: whoever plans the item reports it
        return min(text, self.max_len) if self.max_len else text

    def measure(
        self,
        text: str,
        image_sizes: Sequence[tuple[int, int]],
        name: str,
        is_query: bool = False,
        instruction: str | None = None,
    ) -> PackedItem:
        """What planning needs of an item, from its text and the sizes of its images.

        Args:
            text: Its text.
            image_sizes: (width, height) in pixels of each image.
            name: What messages call it.
            is_query: Whether it is the query side of a pair.
            instruction: Its own; None: the prompt format's.

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
        """What planning needs of an item, from its text and the headers of its images; none is decoded.

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
        """One encoder call for some items.

        Raises:
            InputError: See `process`.
        """
        return self.chunk([self.process(item) for item in items], [item.name for item in items])

    def chunk(self, items: Sequence[ProcessedItem], names: Sequence[str] = ()) -> Chunk:
        """One encoder call for items that are processed."""
        return self.collate(items, sum(item.vision_units for item in items), names)

    def collate(self, items: Iterable[ProcessedItem], vision_units: int, names: Sequence[str] = ()) -> Chunk:
        """One encoder call for items that are processed one after another, so that only one's images are held twice.

        Args:
            items: At least one.
            vision_units: Vision units of all their images, or more.
            names: What messages call them.
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
        """Tells `largest_item` that an item with several images comes, of these sizes (width, height) in pixels."""
        self._several_images = tuple(image_sizes)

    def largest_item(self) -> ProcessedItem:
        """What takes the most: an image that takes as much as any may, or the several images of `expect`, blank."""
        items = [self._blank_images([self.processor.largest_image_size])]
        if self._several_images:
            items.append(self._blank_images(self._several_images))
        return max(items, key=self.budget_tokens)

    def _blank_images(self, sizes: Sequence[tuple[int, int]]) -> ProcessedItem:
        images = tuple(ItemImage(Image.new("RGB", size), "image") for size in sizes)
        tags = "".join(f"<|image_{number}|>" for number in range(1, len(images) + 1)) if len(images) > 1 else ""
        return self.process(EncodeItem(tags, images, "the largest item"))

    def budget_tokens(self, item: ProcessedItem) -> int:
        """What an item takes of a chunk's budget."""
        return len(item.input_ids) + self._vision_tokens(item.vision_units)

    def padding_chunk(self) -> Chunk:
        """The smallest chunk: what a rank runs, with weight zero, where others have more chunks."""
        return self.chunk([self.processor.process_item("", [], self.max_len)])
