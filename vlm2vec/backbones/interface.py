"""What a model family brings: the interfaces that the rest of the library knows it by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

# --- Items: from a text and images to the arguments of the model's forward ---


@dataclass(frozen=True)
class ProcessedItem:
    """One item, decoded and tokenised, ready to be put into a chunk.

    Attributes:
        input_ids: int64 (L,); the row as the model reads it, image tokens included.
        tensors: What the vision tower reads of it, by name, all images' rows one after another; none without images.
        host_values: What Python code reads of its images on the host (sizes, grids), by name; none without images.
        vision_units: What the vision tower runs on for it, in the family's unit; 0 without images.
    """

    input_ids: torch.Tensor
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    host_values: Mapping[str, Any] = field(default_factory=dict)
    vision_units: int = 0

    @property
    def has_image(self) -> bool:
        """Whether the vision tower runs for it."""
        return self.vision_units > 0


@dataclass(frozen=True)
class CollatedItems:
    """The keyword arguments of one call of the model.

    Attributes:
        tensors: Arguments for the device, by name; without images none of the vision tower's.
        host_values: Arguments that stay on the host.
        dummy: Arguments, tensors or host values, that a call without images has besides where other ranks' calls have
            images: the family's smallest image. It runs every module that an image runs, reaches every parameter that
            an image reaches with a gradient of exactly zero, and leaves the vectors as they are. Empty with images.
        num_items: Rows.
        has_image: Whether an item has an image.
    """

    tensors: Mapping[str, torch.Tensor]
    host_values: Mapping[str, Any]
    dummy: Mapping[str, Any]
    num_items: int
    has_image: bool


class ItemProcessor(ABC):
    """A family's tokenizer and its way to cut images; one object serves `encode`, evaluation and training.

    Planning asks for numbers from texts and image sizes and decodes nothing; `process_item` then makes as many.

    Attributes:
        tokens_per_vision_unit: Decoder tokens that a vision unit counts as in the budget of a chunk, on top of the
            tokens of its image; 0 where the vision tower is the smaller part of an image's cost.
    """

    tokens_per_vision_unit: float = 0.0

    @property
    @abstractmethod
    def pad_token_id(self) -> int:
        """The id that fills short rows of a chunk."""

    @property
    @abstractmethod
    def largest_token_id(self) -> int:
        """The largest id that a text can have, or that fills short rows: the model needs an embedding for it."""

    @property
    @abstractmethod
    def largest_image_size(self) -> tuple[int, int]:
        """Width and height in pixels of an image that takes as much as any image may."""

    @abstractmethod
    def num_image_tokens(self, width: int, height: int) -> int:
        """Tokens of an image of this size in pixels.

        Raises:
            InputError: The family cannot cut such an image.
        """

    @abstractmethod
    def num_vision_units(self, width: int, height: int) -> int:
        """Vision units, at least 1, of an image of this size in pixels.

        Raises:
            InputError: The family cannot cut such an image.
        """

    @abstractmethod
    def tokenize(self, text: str, image_tokens: Sequence[int] = (), max_len: int | None = None) -> list[int]:
        """Token ids of an item.

        Args:
            text: Its text, with tags `<|image_1|>`, ... where its images belong.
            image_tokens: How many tokens each image takes.
            max_len: Longest item without images; items with images are not truncated.

        Raises:
            InputError: Tags and images do not fit together.
        """

    @abstractmethod
    def process_item(self, text: str, images: Sequence[Image.Image] = (), max_len: int | None = None) -> ProcessedItem:
        """One item.

        Args:
            text: See `tokenize`.
            images: Decoded, in the order of the tags.
            max_len: See `tokenize`.

        Raises:
            InputError: Tags and images do not fit together, or an image cannot be cut.
        """

    @abstractmethod
    def collate(self, items: Iterable[ProcessedItem], vision_units: int, dtype: torch.dtype) -> CollatedItems:
        """One call of the model for some items.

        Args:
            items: At least one. Gone through once, and an item is let go of before the next one is taken: items may be
                decoded while they are collated, so that one item's tensors alone are held twice.
            vision_units: All their vision units, or more.
            dtype: Of the pixels.
        """

    @classmethod
    @abstractmethod
    def from_pretrained(cls, folder: str | Path) -> ItemProcessor:
        """Reads a folder's tokenizer and settings. A family may have options of its own, all of them with defaults.

        Raises:
            InputError: A file is missing or damaged.
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what `from_pretrained` reads."""
