"""Random Qwen2-VL, Qwen2.5-VL and Qwen3-VL models of a few thousand weights, and synthetic items."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from trials.rig.items import Items
from vlm2vec.backbones.interface import Backbone, Family, ItemProcessor, ProcessedItem
from vlm2vec.backbones.registry import family_named
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs

VOCABULARY = 96
PATCH = 4  # pixels
# The prompt format decides positions: image tokens are counted like text, or by their places in a grid.
FORMATS = {"qwen2_vl": "vlm2vec", "qwen2_5_vl": "chat", "qwen3_vl": "qwen3_vl_embedding"}
# Width and height in pixels; a token is 8 x 8 pixels. Qwen2.5-VL's windows are 2 x 2 tokens: some images have
# several, and most have incomplete ones at the border.
SIZES = ((8, 8), (24, 16), (16, 24), (40, 24), (32, 32), (8, 24))
_LANGUAGE = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.05},
    **{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True},
    **{"bos_token_id": 1, "eos_token_id": 2},
}
_VISION = {"num_heads": 2, "patch_size": PATCH, "initializer_range": 0.05}
_WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
# The tower's fields by family. Qwen2.5-VL's middle block attends to whole images, the others within windows;
# Qwen3-VL has two deepstack mergers.
_TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 16, "mlp_ratio": 2, "hidden_size": 32},
    "qwen2_5_vl": {"depth": 3, **_WIDTHS, "window_size": 4 * PATCH, "fullatt_block_indexes": [1]},
    "qwen3_vl": {"depth": 3, **_WIDTHS, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
}


def tiny_config(family: str, dropout: float = 0.0) -> Any:
    """Two layers of width 32 and a tower of two or three blocks. Attention dropout is the families' only dropout."""
    language: dict[str, Any] = {**_LANGUAGE, "attention_dropout": dropout}
    content: dict[str, Any] = {"vision_config": {**_VISION, **_TOWERS[family]}, "tie_word_embeddings": True}
    if family == "qwen3_vl":
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        content["text_config"] = {**language, "rope_scaling": rope, "head_dim": 8}
    else:
        content |= {**language, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    return _family(family).backbone.config_class.from_dict(content)


def tiny_model(family: str, seed: int = 0, dropout: float = 0.0) -> Backbone:
    """A model with random weights from the seed."""
    torch.manual_seed(seed)
    model: Backbone = _family(family).backbone(tiny_config(family, dropout))
    return model


def tiny_items(family: str) -> Items:
    """Items of one or two images of different sizes and grids, and of text."""
    named = _family(family)
    limits = {"min_pixels": (2 * PATCH) ** 2, "max_pixels": 64 * (2 * PATCH) ** 2}
    processor = named.processor.without_tokenizer(tiny_config(family), named.prompt_formats[FORMATS[family]], **limits)
    return Items(ItemEncoderInputs(processor, None), lambda seed, has_image: _tiny_item(processor, seed, has_image))


def _family(name: str) -> Family:
    return family_named(name, "trials.rig.tiny_qwen")


def _tiny_item(processor: ItemProcessor, seed: int, has_image: bool) -> ProcessedItem:
    """An item whose content follows from the seed; lengths differ, and every fourth has two images."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int, count: int = 1) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    text = drawn(3, VOCABULARY, drawn(2, 13)[0])
    if not has_image:
        return ProcessedItem(torch.tensor(text))
    sizes = [SIZES[index] for index in drawn(0, len(SIZES), 2 if seed % 4 == 0 else 1)]
    num_tokens = [processor.num_image_tokens(*size) for size in sizes]
    blank = processor.blank_item(sum(num_tokens), sizes)
    images = [ids.tolist() for ids in torch.split(blank.input_ids, num_tokens)]
    ids = drawn(3, VOCABULARY) + [token for image in images for token in (*image, *drawn(3, VOCABULARY))] + text
    pixels = {
        name: torch.randint(0, 256, each.shape, generator=generator, dtype=torch.uint8)
        for name, each in blank.tensors.items()
    }
    return replace(blank, input_ids=torch.tensor(ids), tensors=pixels)
