"""Random models of a few thousand weights and synthetic items, for ranks that need no files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from trials.rig import tiny_qwen
from trials.rig.items import Items
from vlm2vec.backbones.interface import Backbone, CollatedItems, ProcessedItem
from vlm2vec.backbones.phi3_v import Phi3VConfig, Phi3VModel, collate, item_with_images
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs

PHI3_V = "phi3_v"
FAMILIES = (PHI3_V, *tiny_qwen.FORMATS)
CROP = 28
IMAGE_TOKENS = 13  # one local crop and the global view, 4 tokens each, with separators
VOCABULARY = 96


class CollationOnly:
    """The part of a processor that chunks of processed items need."""

    tokens_per_vision_unit = 0.0

    def collate(self, items: Iterable[ProcessedItem], vision_units: int, dtype: torch.dtype) -> CollatedItems:
        """Collates like `Phi3VProcessor`, whose rows are padded with 0."""
        return collate(items, 0, vision_units, dtype)


def processed_inputs(dtype: torch.dtype = torch.float32) -> ItemEncoderInputs:
    """Makes chunks of items that are already processed; images have this dtype."""
    return ItemEncoderInputs(CollationOnly(), None, dtype)  # type: ignore[arg-type]


def tiny_config(dropout: float = 0.0, **changes: Any) -> Phi3VConfig:
    """Phi-3-V with two layers of width 32 and a tower of three layers; `changes` are other configuration fields."""
    fields = {
        **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.05},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        **{"resid_pdrop": dropout, "attention_dropout": dropout},
        "vision_config": {
            **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
            **{"image_size": CROP, "patch_size": 7, "attention_dropout": dropout},
        },
    }
    return Phi3VConfig(**{**fields, **changes})


def tiny_model(seed: int = 0, dropout: float = 0.0, family: str = PHI3_V) -> Backbone:
    """A model with random weights from the seed."""
    if family != PHI3_V:
        return tiny_qwen.tiny_model(family, seed, dropout)
    torch.manual_seed(seed)
    return Phi3VModel(tiny_config(dropout))


def tiny_items(family: str = PHI3_V) -> Items:
    """Items for the family's tiny model."""
    return Items(processed_inputs(), tiny_item) if family == PHI3_V else tiny_qwen.tiny_items(family)


def tiny_item(seed: int, has_image: bool) -> ProcessedItem:
    """An item of Phi-3-V whose content follows from the seed; lengths differ, and every fourth has two images."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, VOCABULARY, (int(torch.randint(1, 12, (1,), generator=generator)),), generator=generator)
    if not has_image:
        return ProcessedItem(torch.cat([torch.tensor([1]), text]))
    count = 2 if seed % 4 == 0 else 1
    parts = [torch.tensor([1])]
    for number in range(1, count + 1):
        parts += [torch.full((IMAGE_TOKENS,), -number), torch.tensor([1])]
    return item_with_images(
        torch.cat([*parts, text]),
        torch.randn(2 * count, 3, CROP, CROP, generator=generator),
        torch.tensor([[CROP, CROP]] * count),
    )
