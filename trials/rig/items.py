"""Synthetic items of a model family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import PackedItem


@dataclass(frozen=True)
class Items:
    """Synthetic items of a model family.

    Attributes:
        inputs: Makes chunks of the items.
        make: Makes one item, from a seed and whether it has an image.
    """

    inputs: ItemEncoderInputs
    make: Callable[[int, bool], ProcessedItem]

    def measured(self, item: ProcessedItem, is_query: bool) -> PackedItem:
        """The sizes of an item that packing needs."""
        num_tokens = len(item.input_ids)
        return PackedItem(num_tokens, item.vision_units, is_query, self.inputs.budget_tokens(item) - num_tokens)
