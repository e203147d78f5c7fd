"""Encodes a batch as the original does; our own implementation, for comparison.

According to its public code, the original splits a text at its image's tag and tokenizes the parts with transformers,
pads items to a common length in their order, runs the vision tower on zero crops up to `num_crops` and through its last
layer, keeps the hidden states of all layers, and computes `lm_head` at every position.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlm2vec.backbones.interface import ProcessedItem
from vlm2vec.backbones.phi3_v import Phi3VProcessor, item_with_images
from vlm2vec.encoder import VLM2Vec


def process(processor: Phi3VProcessor, text: str, image: Image.Image | None, max_len: int) -> ProcessedItem:
    """The inputs of one item, equal to those of `Phi3VProcessor.process_item`; the encoder adds zero crops."""
    if image is None:
        ids = processor.tokenizer(text, truncation=True, max_length=max_len).input_ids
        return ProcessedItem(torch.tensor(ids))
    before, behind = (processor.tokenizer(piece).input_ids for piece in re.split(r"<\|image_\d+\|>", text))
    crops = processor.image_processor.crops(image)
    sizes = torch.tensor([processor.image_processor.image_size(*image.size)])
    ids = [*before, *[-1] * processor.num_image_tokens(*image.size), *behind]
    return item_with_images(torch.tensor(ids), crops, sizes)


def padded(items: Sequence[ProcessedItem], rows_per_batch: int, num_crops: int) -> list[dict[str, Any]]:
    """Pads all items to the longest one, and cuts them into batches in their order."""
    ids = nn.utils.rnn.pad_sequence([item.input_ids for item in items], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(item.input_ids) for item in items], batch_first=True)
    batches: list[dict[str, Any]] = []
    for start in range(0, len(items), rows_per_batch):
        rows = slice(start, start + rows_per_batch)
        images = [item for item in items[rows] if item.has_image]
        batch: dict[str, Any] = {"input_ids": ids[rows], "attention_mask": mask[rows]}
        if images:
            batch["pixel_values"] = torch.cat([item.tensors["pixel_values"] for item in images])
            batch["image_sizes"] = torch.cat([item.host_values["image_sizes"] for item in images])
            batch["zero_crops"] = len(images) * (num_crops + 1) - len(batch["pixel_values"])
        batches.append(batch)
    return batches


class OriginalEncoder:
    """An encoder that does all of the original's work for a batch.

    Args:
        encoder: Provides the weights; it keeps the hidden states of its last batch from now on.
    """

    def __init__(self, encoder: VLM2Vec) -> None:
        self._encoder = encoder
        config = encoder.base.config
        self._lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._crop = config.vision_config.image_size
        self._hidden_states: list[Tensor] = []
        for layer in encoder.base.model.layers:
            layer.register_forward_hook(lambda module, inputs, output: self._hidden_states.append(output))

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """Embeddings of a batch of `padded`, float32 (items, hidden)."""
        self._hidden_states.clear()
        inputs = {name: value for name, value in batch.items() if name != "zero_crops"}
        representations: Tensor = self._encoder(**inputs, strict_original=True)
        with torch.no_grad():  # the loss does not depend on it
            self._lm_head(self._hidden_states[-1]).float()
        if "pixel_values" in batch:
            representations = representations + 0.0 * self._unseen(batch["pixel_values"], batch["zero_crops"])
        return representations

    def _unseen(self, pixel_values: Tensor, zero_crops: int) -> Tensor:
        """The vision tower's work on which no embedding depends: its last layer, and zero crops."""
        tower = self._encoder.base.model.vision_embed_tokens.img_processor.vision_model
        with torch.no_grad():
            patches = tower.embeddings(pixel_values[:1]).expand(len(pixel_values) + zero_crops, -1, -1)
            tower.encoder.layers[-1](patches, None)
        if not zero_crops:
            return torch.zeros(())
        zeros = pixel_values.new_zeros(zero_crops, 3, self._crop, self._crop)
        hidden: Tensor = tower.pre_layrnorm(tower.embeddings(zeros))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return hidden.sum()
