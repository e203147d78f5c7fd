"""A made-up model family in one file: exactly what `docs/adding_a_backbone.md` requires.

It differs from Phi-3.5-V wherever the interface lets families differ: an image is a token of the text, is cut into
stripes of 8 pixels, whose number varies, costs the tower more than the decoder, and enters the decoder twice; the dummy
is made of tensors; published tensors have other names than modules.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm2vec.backbones.checkpoint import CONFIG_FILE, Shape, TensorNames
from vlm2vec.backbones.collation import JoinedRows, padded_ids
from vlm2vec.backbones.image_limits import given_limits, refuse_limits
from vlm2vec.backbones.interface import (
    PROJECTOR,
    VISION_TOWER,
    Backbone,
    CollatedItems,
    Family,
    ItemProcessor,
    ProcessedItem,
)
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.backbones.registry import register
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import StrictModel, checked, read_json, write_json
from vlm2vec.item_rules import IMAGE_TAG

WIDTH, STRIPE = 32, 8  # pixels: an image is resized to this width and cut into stripes of this height
PIXELS = 3 * WIDTH * STRIPE  # numbers in a stripe
SPECIAL = ("<pad>", "<start>", "<end>", "<image>")
PAD, START, END, IMAGE = range(len(SPECIAL))
PLAIN = PromptFormat(name="plain", image="[<image>]", template="<start>{content}<end>", image_alone="<|image_1|>")
ASKED = PromptFormat(
    **{**dict(PLAIN), "name": "asked", "template": "<start>{instruction}:{content}<end>", "instruction": ""}
)
SETTINGS = "preprocessor_config.json"

_Size = Annotated[int, Field(ge=1, le=1 << 12)]


class MadeUpConfig(PreTrainedConfig):
    """Its config.json."""

    model_type = "made_up"
    vocab_size: int = 260
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    tower_width: int = 24
    num_tower_layers: int = 2
    max_stripes: int = 16


class _Fields(StrictModel):
    vocab_size: _Size
    hidden_size: _Size
    num_hidden_layers: _Size
    num_tower_layers: _Size


class _Settings(StrictModel):
    max_pixels: Annotated[int, Field(ge=2 * WIDTH * STRIPE)]


def read_settings(folder: Path) -> dict[str, int]:
    """The limits that a processor's file says."""
    return checked(_Settings, read_json(folder / SETTINGS), folder / SETTINGS).model_dump()


class Tower(nn.Module):
    """Linear; stripes (stripes, PIXELS) to features (stripes, tower width)."""

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS, config.tower_width)
        self.places = nn.Parameter(torch.zeros(config.max_stripes, config.tower_width))
        self.rest = nn.ModuleList(
            nn.Linear(config.tower_width, config.tower_width) for _ in range(config.num_tower_layers)
        )

    def forward(self, stripes: torch.Tensor, heights: Sequence[int]) -> torch.Tensor:
        features: torch.Tensor = self.first(stripes) + torch.cat([self.places[:height] for height in heights])
        for layer in self.rest:
            features = features + layer(features)
        return features


class Layer(GradientCheckpointingLayer):
    """Causal attention and a feed-forward part; the decoder has no positions but the causal mask's."""

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.look, self.tell = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        looked = self.look(self.norms[0](hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = looked
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.tell(seen.transpose(1, 2).flatten(2))
        result: torch.Tensor = hidden + self.narrow(F.gelu(self.widen(self.norms[1](hidden))))
        return result


def _added(hidden: torch.Tensor, rows: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
    if rows is None:
        return hidden + (features * 0.0).sum()
    return hidden.flatten(0, 1).index_add(0, rows, features.to(hidden.dtype)).view_as(hidden)


class MadeUpModel(Backbone):
    """Image tokens are pairs of stripes, added to their places in front of the first layer and once more behind it."""

    config_class = MadeUpConfig
    tensor_names = TensorNames("text.words.weight", "text.head.weight")
    prefixes: ClassVar[Mapping[str, str]] = {"tower.": "eyes.", "tokens.": "text.words.", "layers.": "text.blocks."}
    lora_targets = ("look", "tell", "widen", "narrow", "first", "late")
    causal_class = "MadeUpForCausalLM"
    _no_split_modules = ("Layer",)
    _supports_sdpa = True

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.tower = Tower(config)
        self.early, self.late = (nn.Linear(2 * config.tower_width, config.hidden_size) for _ in range(2))
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm, self.old_norm = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.post_init()
        self.freeze_unused()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        stripes: torch.Tensor | None = None,
        image_rows: torch.Tensor | None = None,
        heights: Sequence[int] = (),
    ) -> torch.Tensor:
        """Hidden states after the final norm, (n, L, hidden).

        Args:
            input_ids: int64 (n, L), padded on the right.
            attention_mask: Not needed: causal attention keeps padding out of the rows.
            stripes: Float (stripes, PIXELS), all images' one after another.
            image_rows: int64 (stripes / 2,), where their tokens are in the n * L tokens; None: nowhere, as a dummy's.
            heights: Stripes of each image.
        """
        hidden, late = self.tokens(input_ids), None
        if stripes is not None:
            pairs = self.tower(stripes.to(hidden.dtype), heights).unflatten(0, (-1, 2)).flatten(1)
            late = self.late(pairs)
            hidden = _added(hidden, image_rows, self.early(pairs))
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if late is not None and number == 0:
                hidden = _added(hidden, image_rows, late)
        normed: torch.Tensor = self.norm(hidden)
        return normed

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    @classmethod
    def load_config(cls, folder: Path, found: Mapping[str, Shape]) -> MadeUpConfig:
        content = read_json(folder / CONFIG_FILE)
        fields = checked(_Fields, content, folder / CONFIG_FILE)
        if found and found.get(cls.tensor_names.embeddings) != (fields.vocab_size, fields.hidden_size):
            raise InputError(f"{folder / CONFIG_FILE}: vocab_size or hidden_size are not the weights'")
        config: MadeUpConfig = MadeUpConfig.from_dict(content)
        return config

    @classmethod
    def depths(cls, config: PreTrainedConfig) -> tuple[int, int]:
        return config.num_hidden_layers, config.num_tower_layers

    @classmethod
    def with_depths(cls, config: PreTrainedConfig, decoder: int, vision: int) -> PreTrainedConfig:
        config = copy.deepcopy(config)
        config.num_hidden_layers, config.num_tower_layers = decoder, vision
        return config

    def unused_modules(self) -> Sequence[nn.Module]:
        return (self.old_norm,)

    def freezable(self) -> Mapping[str, Sequence[nn.Parameter]]:
        return {
            VISION_TOWER: list(self.tower.parameters()),
            PROJECTOR: [*self.early.parameters(), *self.late.parameters()],
        }

    def vision_modules(self) -> Sequence[nn.Module]:
        return self.tower, self.early, self.late

    def check_processor(self, processor: Any, source: Path) -> None:
        if processor.max_stripes > self.config.max_stripes:
            raise InputError(
                f"{source / SETTINGS}: images of {processor.max_stripes} stripes are too high for the model"
            )

    def install_compiled(self) -> None:
        """Nothing is compiled."""


class MadeUpProcessor(ItemProcessor):
    """Bytes are tokens, without a tokenizer's file; special tokens are made from formats, never from texts."""

    tokens_per_vision_unit = 0.5
    pad_token_id = PAD
    largest_token_id = len(SPECIAL) + 255

    def __init__(self, max_pixels: int, prompt_format: PromptFormat = PLAIN) -> None:
        self.max_stripes, self.prompt_format = max_pixels // (WIDTH * STRIPE), prompt_format

    @property
    def image_limits(self) -> Mapping[str, int]:
        return {"max_pixels": self.max_stripes * WIDTH * STRIPE}

    @classmethod
    def check_format(cls, prompt_format: PromptFormat) -> None:
        if prompt_format.image.count(SPECIAL[IMAGE]) != 1:
            raise InputError(f"image: {prompt_format.image!r} does not hold {SPECIAL[IMAGE]} once")

    @property
    def largest_image_size(self) -> tuple[int, int]:
        return WIDTH, STRIPE * self.max_stripes

    def num_vision_units(self, width: int, height: int) -> int:
        return 2 * min(max(round(height * WIDTH / width / STRIPE / 2), 1), self.max_stripes // 2)

    def num_image_tokens(self, width: int, height: int) -> int:
        return self.num_vision_units(width, height) // 2

    def tokenize(
        self,
        text: str,
        image_tokens: Sequence[int] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> list[int]:
        prompt = self.prompt_format.prompt(text, len(image_tokens), instruction)
        before, after = _special_ids(prompt.before), _special_ids(prompt.after)
        if not image_tokens:
            room = None if max_len is None else max(0, max_len - len(before) - len(after))
            return [*before, *_byte_ids(prompt.content)[:room], *after]
        ids, pieces = before, IMAGE_TAG.split(prompt.content)
        for piece, tag in zip(pieces[::2], [*pieces[1::2], None], strict=True):
            ids += _byte_ids(piece)
            for token in _special_ids(self.prompt_format.image) if tag else ():
                ids += [token] * (image_tokens[int(tag or 0) - 1] if token == IMAGE else 1)
        return ids + after

    def process_item(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> ProcessedItem:
        image_tokens = [self.num_image_tokens(*image.size) for image in images]
        ids = torch.tensor(self.tokenize(text, image_tokens, max_len, instruction))
        if not images:
            return ProcessedItem(ids)
        tags = IMAGE_TAG.findall(self.prompt_format.render(text, len(images), instruction))
        images = [images[int(tag) - 1] for tag in tags]  # in the order of the text
        heights = [self.num_vision_units(*image.size) for image in images]
        stripes = [
            torch.from_numpy(np.array(image.convert("RGB").resize((WIDTH, STRIPE * height)))).reshape(-1, PIXELS)
            for image, height in zip(images, heights, strict=True)
        ]
        places = (ids == IMAGE).nonzero().flatten()
        return ProcessedItem(
            ids, {"stripes": torch.cat(stripes) / 127.5 - 1, "places": places}, {"heights": heights}, sum(heights)
        )

    def collate(self, items: Iterable[ProcessedItem], vision_units: int, dtype: torch.dtype) -> CollatedItems:
        stripes = JoinedRows(vision_units, dtype)
        ids: list[torch.Tensor] = []
        places: list[tuple[int, torch.Tensor]] = []
        heights: list[int] = []
        for item in items:
            if item.has_image:
                stripes.add(item.tensors["stripes"])
                places.append((len(ids), item.tensors["places"]))
                heights += item.host_values["heights"]
            ids.append(item.input_ids)
        tensors = padded_ids(ids, PAD)
        if stripes.joined is None:
            dummy = {"stripes": torch.zeros(2, PIXELS, dtype=dtype), "heights": (2,)}
            return CollatedItems(tensors, {}, dummy, len(ids), has_image=False)
        length = tensors["input_ids"].shape[1]
        tensors |= {"stripes": stripes.joined, "image_rows": torch.cat([length * row + each for row, each in places])}
        return CollatedItems(tensors, {"heights": tuple(heights)}, {}, len(ids), has_image=True)

    def blank_item(self, num_tokens: int, image_sizes: Sequence[tuple[int, int]] = ()) -> ProcessedItem:
        ids, heights = torch.full((num_tokens,), START), [self.num_vision_units(*size) for size in image_sizes]
        if not heights:
            return ProcessedItem(ids)
        stripes, places = torch.empty(sum(heights), PIXELS, device="meta"), torch.arange(sum(heights) // 2)
        ids[places] = IMAGE
        return ProcessedItem(ids, {"stripes": stripes, "places": places}, {"heights": heights}, sum(heights))

    @classmethod
    def without_tokenizer(
        cls, config: PreTrainedConfig, prompt_format: PromptFormat | None = None, **limits: int | None
    ) -> MadeUpProcessor:
        refuse_limits(given_limits(limits), FAMILY.image_limits, FAMILY.model_type)
        max_pixels = limits.get("max_pixels") or config.max_stripes * WIDTH * STRIPE
        return cls(max_pixels, FAMILY.prompt_format(prompt_format or PLAIN))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, prompt_format: PromptFormat | None = None, **limits: int | None
    ) -> MadeUpProcessor:
        refuse_limits(given_limits(limits), FAMILY.image_limits, FAMILY.model_type)
        max_pixels = limits.get("max_pixels") or read_settings(Path(folder))["max_pixels"]
        return cls(max_pixels, FAMILY.prompt_format(prompt_format or PLAIN))

    def save_pretrained(self, folder: str | Path) -> None:
        write_json(Path(folder) / SETTINGS, self.image_limits)


def _byte_ids(text: str) -> list[int]:
    return [len(SPECIAL) + byte for byte in text.encode()]


def _special_ids(text: str) -> list[int]:
    """Of a format's own text."""
    pieces = re.split(f"({'|'.join(SPECIAL)})", text)
    return [token for each in pieces for token in ([SPECIAL.index(each)] if each in SPECIAL else _byte_ids(each))]


FAMILY = Family(
    model_type=MadeUpConfig.model_type,
    backbone=MadeUpModel,
    processor=MadeUpProcessor,
    prompt_formats={each.name: each for each in (PLAIN, ASKED)},
    recognise_format=lambda _: PLAIN.name,
    image_limits=("max_pixels",),
    stored_limits=read_settings,
    vision_unit_name="stripes",
)
register(MadeUpConfig.model_type, lambda: FAMILY)


def made_up_model(seed: int = 0) -> MadeUpModel:
    """Random weights that follow from the seed."""
    torch.manual_seed(seed)
    model = MadeUpModel(MadeUpConfig())
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            alike = parameter.dim() == 1 or name.startswith("tokens.")
            parameter.data.normal_(0.0, 0.3 if alike else parameter[0].numel() ** -0.5)
    return model


def write_made_up_model(folder: Path) -> None:
    """A checkpoint folder as one that somebody has published, with an output head."""
    model = made_up_model()
    state = {**model.state_dict(), MadeUpModel.tensor_names.head: torch.ones(260, 32)}
    model.save_pretrained(folder, state_dict=state)
    MadeUpProcessor(12 * WIDTH * STRIPE).save_pretrained(folder)
