"""Random items of any model family: the family's own arguments, with random pixels and tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vlm2vec.backbones.interface import ItemProcessor, ProcessedItem

# Items take their pixels from one store, at offsets of at most this many rows.
_PLACES = 64


class RandomItems:
    """Makes items without tokenizer and image files.

    Args:
        processor: The family's processor; `ItemProcessor.without_tokenizer` is enough.
        num_text_ids: Text uses only ids below this.
    """

    def __init__(self, processor: ItemProcessor, num_text_ids: int) -> None:
        self._processor = processor
        self._num_text_ids = num_text_ids
        self._text_id = int(processor.blank_item(1).input_ids[0])
        self._stores: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._num_items = 0

    def __call__(self, text: Tensor, size: tuple[int, int] | None) -> ProcessedItem:
        """Makes one item: a token, the image's tokens if there is one, and a text.

        Args:
            text: Token ids, int64 (tokens,).
            size: Width and height of the image in pixels; None: no image.
        """
        sizes = () if size is None else (size,)
        num_tokens = 1 + len(text) + sum(self._processor.num_image_tokens(*each) for each in sizes)
        item = self._processor.blank_item(num_tokens, sizes)
        ids = item.input_ids.clone()
        places = (ids == self._text_id).nonzero().flatten()
        ids[places[-len(text) :]] = text % self._num_text_ids
        self._num_items += 1
        tensors = {name: self._pixels(name, each) if each.is_meta else each for name, each in item.tensors.items()}
        return replace(item, input_ids=ids, tensors=tensors)

    def _pixels(self, name: str, blank: Tensor) -> Tensor:
        key = name, tuple(blank.shape[1:])
        store = self._stores.get(key)
        if store is None or len(store) < len(blank) + _PLACES:
            shape = (len(blank) + _PLACES, *blank.shape[1:])
            store = torch.randn(shape) if blank.is_floating_point() else torch.randint(0, 256, shape)
            store = store.to(torch.bfloat16 if blank.is_floating_point() else blank.dtype)
            self._stores[key] = store
        start = self._num_items % _PLACES
        return store[start : start + len(blank)]
