"""Interface of a family's items and processor: from texts and images to the arguments of the model's forward.

Import it from `vlm2vec/backbones/interface.py`, like the other interfaces of a family.
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
    """One item, decoded and tokenised, ready to be collated into a chunk.

    Attributes:
        input_ids: Token ids of the row as the model reads it, image tokens included, int64 (L,).
        tensors: Inputs of the vision tower by name, with all images' rows concatenated; empty without images.
        host_values: Values of its images that Python code reads on the host (sizes, grids), by name; empty without
            images.
        vision_units: Units that the vision tower runs on, in the family's unit; 0 without images.
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
        tensors: Arguments for the device by name; without images there are none for the vision tower.
        host_values: Arguments that stay on the host.
        dummy: Additional arguments, tensors or host values, for a call without images while other ranks' calls have
            images: the family's smallest image. It runs every module and reaches every parameter that an image does,
            with a gradient of exactly zero, and does not change the vectors. Empty if there are images.
        num_items: Number of rows.
        has_image: Whether an item has an image.
    """

    tensors: Mapping[str, torch.Tensor]
    host_values: Mapping[str, Any]
    dummy: Mapping[str, Any]
    num_items: int
    has_image: bool


class ItemProcessor(ABC):
    """A family's tokenizer and image preprocessing; one object serves `encode`, evaluation and training.

    Planning computes token and unit counts from texts and image sizes without decoding; `process_item` must then return
    the same counts.

    Attributes:
        tokens_per_vision_unit: Decoder tokens that a vision unit counts as in a chunk's budget, in addition to the
            tokens of its image; 0 if the vision tower is the smaller part of an image's cost.
        prompt_format: The prompt format in use.
        tokenizer: The transformers tokenizer, for libraries that read it.
    """

    tokens_per_vision_unit: float = 0.0
    prompt_format: PromptFormat = PromptFormat()
    tokenizer: PreTrainedTokenizerFast

    @property
    @abstractmethod
    def image_limits(self) -> Mapping[str, int]:
        """The values in use of all limits in `Family.image_limits`, by name."""

    @classmethod
    @abstractmethod
    def check_format(cls, prompt_format: PromptFormat) -> None:
        """Checks that this family supports a prompt format.

        Raises:
            InputError: It does not; the message names the field.
        """

    @property
    def pad_token_id(self) -> int:
        """Token id that pads short rows of a chunk."""
        return int(self.tokenizer.pad_token_id)

    @property
    def largest_token_id(self) -> int:
        """Largest token id in texts and padding; the model needs an embedding for it."""
        ids: list[int] = list(self.tokenizer.get_vocab().values())
        return max(self.pad_token_id, *ids)

    @property
    @abstractmethod
    def largest_image_size(self) -> tuple[int, int]:
        """Width and height in pixels of an image with the highest possible cost."""

    @property
    def planned_image_size(self) -> tuple[int, int]:
        """Width and height in pixels that a plan assumes by default: those of the largest image."""
        return self.largest_image_size

    @abstractmethod
    def num_image_tokens(self, width: int, height: int) -> int:
        """Number of tokens of an image with this size in pixels.

        Raises:
            InputError: The family cannot process such an image.
        """

    @abstractmethod
    def num_vision_units(self, width: int, height: int) -> int:
        """Number of vision units, at least 1, of an image with this size in pixels.

        Raises:
            InputError: The family cannot process such an image.
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
            text: Text of the item, with tags `<|image_1|>`, ... for its images; see `PromptFormat.prompt`.
            image_tokens: Number of tokens of each image.
            max_len: Longest item without images, in tokens; the text is truncated, but not what the format adds. Items
                with images are not truncated.
            instruction: Instruction of the item; None: the format's.

        Returns:
            At least one id, also for "", because padding chunks consist of such an item.

        Raises:
            InputError: Tags and images do not match, or the format has no place for an instruction.
        """

    @abstractmethod
    def process_item(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> ProcessedItem:
        """Tokenises the text and preprocesses the decoded images of one item.

        Args:
            text: See `tokenize`.
            images: Decoded images, in the order of the tags.
            max_len: See `tokenize`.
            instruction: See `tokenize`.

        Raises:
            InputError: See `tokenize`; or an image cannot be processed.
        """

    @abstractmethod
    def collate(self, items: Iterable[ProcessedItem], vision_units: int, dtype: torch.dtype) -> CollatedItems:
        """Builds the arguments of one call of the model for some items.

        Args:
            items: At least one item. They are iterated once, and each is released before the next is taken, so that
                items can be decoded during collation and only one item's tensors exist twice.
            vision_units: Total number of their vision units, or more.
            dtype: Dtype of the pixels.
        """

    @abstractmethod
    def blank_item(self, num_tokens: int, image_sizes: Sequence[tuple[int, int]] = ()) -> ProcessedItem:
        """An item without content, for estimates; `collate` accepts it.

        Args:
            num_tokens: Length of its row: the tokens of its images, and text for the rest.
            image_sizes: Width and height of its images in pixels.

        Returns:
            The same as `process_item` for such an item, except that pixels are on the meta device, where they take no
            memory; token ids and all values that Python code reads are real.

        Raises:
            InputError: The family cannot process such an image.
            ValueError: The images have more tokens than the row.
        """

    @classmethod
    @abstractmethod
    def without_tokenizer(
        cls, config: PreTrainedConfig, prompt_format: PromptFormat | None = None, **limits: int | None
    ) -> ItemProcessor:
        """Makes a processor for estimates from the model's configuration: it counts tokens and makes blank items.

        Args:
            config: Configuration of the model.
            prompt_format: See `from_pretrained`.
            limits: Image limits of the family; None: those of its published models.

        Raises:
            InputError: The family does not support the format or a limit.
        """

    @classmethod
    @abstractmethod
    def from_pretrained(
        cls, folder: str | Path, prompt_format: PromptFormat | None = None, **limits: int | None
    ) -> ItemProcessor:
        """Reads a folder's tokenizer and settings.

        Args:
            folder: Folder with the processor's files.
            prompt_format: The prompt format; None: the one that `Family.folder_format` finds.
            limits: Image limits of the family (`vlm2vec/backbones/image_limits.py`); None: the folder's.

        Raises:
            InputError: A file is missing or damaged, or the family does not support the format or a limit.
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the files that `from_pretrained` reads; prompt format and limits are in `vlm2vec_config.json`."""
