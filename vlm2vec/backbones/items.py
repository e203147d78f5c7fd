"""Items of a model family: from a text and images to the arguments of the model's forward.

Imported from `vlm2vec/backbones/interface.py`, as the rest of a family's interfaces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from vlm2vec.backbones.prompts import PromptFormat


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
        prompt_format: The one in force.
        tokenizer: transformers', for libraries that ask for it.
    """

    tokens_per_vision_unit: float = 0.0
    prompt_format: PromptFormat = PromptFormat()
    tokenizer: PreTrainedTokenizerFast

    @property
    @abstractmethod
    def image_limits(self) -> Mapping[str, int]:
        """The limits of `Family.image_limits` in force, all of them, by name."""

    @classmethod
    @abstractmethod
    def check_format(cls, prompt_format: PromptFormat) -> None:
        """Whether this family can make such prompts.

        Raises:
            InputError: It cannot; the message names the field.
        """

    @property
    def pad_token_id(self) -> int:
        """The id that fills short rows of a chunk."""
        return int(self.tokenizer.pad_token_id)

    @property
    def largest_token_id(self) -> int:
        """The largest id that a text can have, or that fills short rows: the model needs an embedding for it."""
        ids: list[int] = list(self.tokenizer.get_vocab().values())
        return max(self.pad_token_id, *ids)

    @property
    @abstractmethod
    def largest_image_size(self) -> tuple[int, int]:
        """Width and height in pixels of an image that takes as much as any image may."""

    @property
    def planned_image_size(self) -> tuple[int, int]:
        """Width and height in pixels of the images that a plan assumes where the user gives no size: the largest."""
        return self.largest_image_size

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
    def tokenize(
        self,
        text: str,
        image_tokens: Sequence[int] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> list[int]:
        """Token ids of an item's prompt.

        Args:
            text: Its own text, with tags `<|image_1|>`, ... where its images belong; see `PromptFormat.prompt`.
            image_tokens: How many tokens each image takes.
            max_len: Longest item without images; its own text is truncated, what the format adds is not. Items with
                images are not truncated.
            instruction: Its own; None: the format's.

        Returns:
            At least one id, for "" too: chunks that stand for none have such an item.

        Raises:
            InputError: Tags and images do not fit together, or the format has no place for an instruction.
        """

    @abstractmethod
    def process_item(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> ProcessedItem:
        """One item.

        Args:
            text: See `tokenize`.
            images: Decoded, in the order of the tags.
            max_len: See `tokenize`.
            instruction: See `tokenize`.

        Raises:
            InputError: See `tokenize`; or an image cannot be cut.
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

    @abstractmethod
    def blank_item(self, num_tokens: int, image_sizes: Sequence[tuple[int, int]] = ()) -> ProcessedItem:
        """An item without content, for estimates: `collate` makes of such items what a call of the model takes.

        Args:
            num_tokens: Length of its row: the tokens of its images, and text for the rest.
            image_sizes: Width and height in pixels of its images.

        Returns:
            What `process_item` returns for such an item, but that the pixels are on the meta device, where they take no
            memory; ids and all that Python code reads are real.

        Raises:
            InputError: The family cannot cut such an image.
            ValueError: The images have more tokens than the row.
        """

    @classmethod
    @abstractmethod
    def without_tokenizer(
        cls, config: PreTrainedConfig, prompt_format: PromptFormat | None = None, **limits: int | None
    ) -> ItemProcessor:
        """A processor for estimates, made from the model's configuration: it counts images and makes blank items.

        Args:
            config: The model's.
            prompt_format: See `from_pretrained`.
            limits: The family's image limits; None: those of its published models.

        Raises:
            InputError: A format that the family cannot make, or a limit that it does not have.
        """

    @classmethod
    @abstractmethod
    def from_pretrained(
        cls, folder: str | Path, prompt_format: PromptFormat | None = None, **limits: int | None
    ) -> ItemProcessor:
        """Reads a folder's tokenizer and settings.

        Args:
            folder: The processor's files.
            prompt_format: None: what `Family.folder_format` finds.
            limits: The family's image limits (`vlm2vec/backbones/image_limits.py`); None: what the folder says.

        Raises:
            InputError: A file is missing or damaged; a format that the family cannot make, or a limit that it does not
                have.
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what `from_pretrained` reads of a folder; format and limits in force are in `vlm2vec_config.json`."""
