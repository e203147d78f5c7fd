"""Base of the three Qwen-VL families' processors: tokens, images, files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from vlm2vec.backbones.image_limits import given_limits, refuse_limits
from vlm2vec.backbones.interface import CollatedItems, ItemProcessor, ProcessedItem
from vlm2vec.backbones.prompts import PromptFormat, named_format
from vlm2vec.backbones.qwen_vl.items.collation import GRIDS, PATCHES, Collator
from vlm2vec.backbones.qwen_vl.items.formats import FORMATS, IMAGE_TOKEN, recognised_format
from vlm2vec.backbones.qwen_vl.items.image_processor import NUM_FRAMES, QwenVLImageProcessor
from vlm2vec.backbones.qwen_vl.items.positions import Grid
from vlm2vec.backbones.qwen_vl.items.preprocessor_file import (
    PREPROCESSOR_FILE,
    PreprocessorFile,
    PublishedFile,
    VisionFields,
)
from vlm2vec.backbones.qwen_vl.items.resize import RULES
from vlm2vec.backbones.tokenizer_files import TokenizerFiles, encoded, load_tokenizer
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import shorten, write_json
from vlm2vec.item_rules import IMAGE_TAG, image_tags

LIMITS = ("min_pixels", "max_pixels")

_Processor = TypeVar("_Processor", bound="QwenVLProcessor")


class QwenVLProcessor(ItemProcessor):
    """Base of the processors of the three families.

    Args:
        tokenizer: The checkpoint's tokenizer, from tokenizer.json.
        image_processor: Splits images into patches.
        prompt_format: How prompts are made.
        table: Value of the field that the family's tower depends on, see `vision_field`.

    Attributes:
        model_type: Name of the family.
        vision_field: Field of config.json's `vision_config` that the family's windows or positions depend on; "" if
            there is none.
        published: Settings in a published preprocessor_config.json of the family.

    Raises:
        InputError: The family does not support the format, or the tokenizer has no image token.
    """

    # In a 2B model, a patch costs the tower about 0.67 billion multiplications, and a token costs the decoder 1.5
    # billion: the four patches of a token count as one further token.
    tokens_per_vision_unit = 0.25

    model_type: ClassVar[str]
    vision_field: ClassVar[str] = ""
    published: ClassVar[PublishedFile]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: QwenVLImageProcessor,
        prompt_format: PromptFormat,
        table: int = 0,
    ) -> None:
        self.check_format(prompt_format)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.prompt_format = prompt_format
        self.table = table
        self.image_token_id = _token_id(tokenizer, IMAGE_TOKEN)
        self._tokenizer_files = TokenizerFiles({}, len(tokenizer))
        self._encoder = tokenizer.backend_tokenizer
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._collator = Collator(
            image_processor, self.image_token_id, self.pad_token_id, prompt_format.positions, self._tower_arguments
        )

    @abstractmethod
    def _tower_arguments(self, grids: Sequence[Grid]) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
        """Inputs of the family's tower besides pixels, positions and lengths: tensors and host values by name."""

    @classmethod
    def check_format(cls, prompt_format: PromptFormat) -> None:
        """Checks that an image's text has the image token once, and that the resize rule exists."""
        where = f"prompt format {prompt_format.name!r}"
        if prompt_format.image.count(IMAGE_TOKEN) != 1:
            raise InputError(f"{where}: image is {shorten(prompt_format.image)}; it needs {IMAGE_TOKEN} exactly once")
        for name in ("template", "instruction", "nothing"):
            if IMAGE_TOKEN in (getattr(prompt_format, name) or ""):
                raise InputError(f"{where}: {name} holds {IMAGE_TOKEN}, which belongs to image")
        if prompt_format.resize not in RULES:
            raise InputError(
                f"{where}: resize is {shorten(prompt_format.resize)}; a {cls.model_type} has {', '.join(RULES)}"
            )

    # Facts.

    @property
    def image_limits(self) -> Mapping[str, int]:
        """The limits in use."""
        settings = self.image_processor.settings
        return {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.image_processor.settings.patch_size

    @property
    def largest_image_size(self) -> tuple[int, int]:
        """Width and height in pixels of an image with the highest possible cost."""
        return self.image_processor.largest_image_size

    def num_image_tokens(self, width: int, height: int) -> int:
        """Number of tokens of an image with this size in pixels, computed without decoding it."""
        return self.image_processor.layout(width, height).num_tokens

    def num_vision_units(self, width: int, height: int) -> int:
        """Number of patches of an image with this size in pixels, computed without decoding it."""
        return self.image_processor.layout(width, height).num_patches

    # Files.

    @classmethod
    def from_pretrained(
        cls: type[_Processor], folder: str | Path, prompt_format: PromptFormat | None = None, **limits: int | None
    ) -> _Processor:
        """Reads tokenizer.json, preprocessor_config.json and config.json's `vision_config`.

        Args:
            folder: A checkpoint or an adapter.
            prompt_format: The prompt format; None: that of a published folder if recognised (`recognised_format`).
            limits: `min_pixels`, `max_pixels`; None: the folder's limits. If those are the ones in all published files,
                which were never chosen, a built-in format uses the limits of its code instead.

        Raises:
            InputError: A file is missing or damaged, the family does not support the format, no image can meet the
                limits, or the format is unknown.
        """
        folder = Path(folder)
        refuse_limits(given_limits(limits), LIMITS, cls.model_type)
        if prompt_format is None:
            prompt_format = named_format(FORMATS, recognised_format(folder), folder)
        cls.check_format(prompt_format)
        file, vision = PreprocessorFile.read(folder), VisionFields.read(folder)
        settings = cls.published.settings(file, vision, prompt_format, given_limits(limits))
        for name in ("patch_size", *([cls.vision_field] if cls.vision_field else [])):
            said, of_model = getattr(file, name), getattr(vision, name)
            if None not in (said, of_model) and said != of_model:
                raise InputError(f"{folder / PREPROCESSOR_FILE}: {name} is {said}, the model's is {of_model}")
        try:
            images = QwenVLImageProcessor(settings)
        except InputError as error:
            source = folder if given_limits(limits) else folder / PREPROCESSOR_FILE
            raise InputError(f"{source}: {error}") from error
        processor = cls(load_tokenizer(folder), images, prompt_format, cls.published.table_of(file, vision))
        processor._tokenizer_files = TokenizerFiles.read(folder, len(processor.tokenizer))
        return processor

    @classmethod
    def without_tokenizer(
        cls: type[_Processor],
        config: PreTrainedConfig,
        prompt_format: PromptFormat | None = None,
        **limits: int | None,
    ) -> _Processor:
        """See `ItemProcessor.without_tokenizer`; the default format is that of new training ("chat")."""
        refuse_limits(given_limits(limits), LIMITS, cls.model_type)
        fields = [name for name in ("patch_size", cls.vision_field) if name]
        vision = VisionFields(**{name: getattr(config.vision_config, name) for name in fields})
        special = {"pad_token": "<|endoftext|>", "additional_special_tokens": [IMAGE_TOKEN]}
        blank = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **special)
        prompt_format = prompt_format or FORMATS["chat"]
        cls.check_format(prompt_format)
        settings = cls.published.settings(PreprocessorFile(), vision, prompt_format, given_limits(limits))
        table = cls.published.table_of(PreprocessorFile(), vision)
        return cls(blank, QwenVLImageProcessor(settings), prompt_format, table)

    @classmethod
    def stored_limits(cls, folder: Path) -> dict[str, int]:
        """Limits in a folder's preprocessor_config.json, if they differ from those in all published files.

        Raises:
            InputError: The file is damaged, or a value is impossible.
        """
        return cls.published.chosen_limits(PreprocessorFile.read(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer's files, unchanged if they were read from a folder, and preprocessor_config.json."""
        self._tokenizer_files.write(Path(folder), self.tokenizer)
        write_json(Path(folder) / PREPROCESSOR_FILE, self.published.content(self.image_processor.settings, self.table))

    # Items.

    def tokenize(
        self,
        text: str,
        image_tokens: Sequence[int] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> list[int]:
        """Token ids of an item whose images have `image_tokens` tokens each.

        The whole prompt is tokenized at once, as in the originals. Special tokens in a text are treated as special
        tokens, except for the image token, which is refused: images are written as tags.

        Raises:
            InputError: Tags and images do not match, the text holds the image token or a lone surrogate, or the format
                has no place for an instruction.
        """
        return self._tokenized(text, image_tokens, max_len, instruction)[0]

    def _tokenized(
        self, text: str, image_tokens: Sequence[int], max_len: int | None, instruction: str | None
    ) -> tuple[list[int], list[int]]:
        """Token ids, and indices of the images, from 0, in the order of their tokens."""
        prompt = self.prompt_format.prompt(text, len(image_tokens), instruction)
        whole = str(prompt)
        if not image_tokens:
            made = encoded(self._encoder, whole)
            self._count_image_tokens(made.ids, 0, text)
            return prompt.truncated(made.ids, made.offsets, max_len) or [self.pad_token_id], []
        order = [tag - 1 for tag in image_tags(whole, len(image_tokens))]
        single = encoded(self._encoder, IMAGE_TAG.sub(lambda _: self.prompt_format.image, whole)).ids
        self._count_image_tokens(single, len(image_tokens), text)
        ids: list[int] = []
        start = 0
        for image in order:
            end = single.index(self.image_token_id, start)
            ids += single[start:end]
            ids += [self.image_token_id] * image_tokens[image]
            start = end + 1
        return ids + single[start:], order

    def _count_image_tokens(self, ids: list[int], num_images: int, text: str) -> None:
        if ids.count(self.image_token_id) != num_images:
            raise InputError(
                f"the text {shorten(text)} or its instruction holds {IMAGE_TOKEN}, which stands for an image's "
                "content; write <|image_1|> where an image belongs, or remove it"
            )

    def process_item(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> ProcessedItem:
        """Makes one item; its patches are bytes, which `collate` normalises.

        Raises:
            InputError: See `tokenize`; or an image cannot be resized.
        """
        layouts = [self.image_processor.layout(*image.size) for image in images]
        ids, order = self._tokenized(text, [each.num_tokens for each in layouts], max_len, instruction)
        if not images:
            return ProcessedItem(torch.tensor(ids))
        patches = [self.image_processor.patches(images[image]) for image in order]
        return ProcessedItem(
            torch.tensor(ids),
            {PATCHES: patches[0] if len(patches) == 1 else torch.cat(patches)},
            {GRIDS: tuple((layouts[image].rows, layouts[image].columns) for image in order)},
            sum(each.num_patches for each in layouts),
        )

    def blank_item(self, num_tokens: int, image_sizes: Sequence[tuple[int, int]] = ()) -> ProcessedItem:
        """See `ItemProcessor.blank_item`."""
        layouts = [self.image_processor.layout(*size) for size in image_sizes]
        image_tokens, patches = sum(each.num_tokens for each in layouts), sum(each.num_patches for each in layouts)
        if image_tokens > num_tokens:
            raise ValueError(f"a row of {num_tokens} tokens cannot hold images of {image_tokens} tokens")
        ids = torch.full((num_tokens,), self.pad_token_id)
        ids[:image_tokens] = self.image_token_id
        if not layouts:
            return ProcessedItem(ids)
        width = self.image_processor.patch_width // NUM_FRAMES
        blank = torch.empty(patches, width, dtype=torch.uint8, device="meta")
        grids = tuple((each.rows, each.columns) for each in layouts)
        return ProcessedItem(ids, {PATCHES: blank}, {GRIDS: grids}, patches)

    def collate(self, items: Iterable[ProcessedItem], vision_units: int, dtype: torch.dtype) -> CollatedItems:
        """Builds the arguments of the model's `forward`; see `Collator`."""
        return self._collator(items, vision_units, dtype)


def _token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise InputError(f"the tokenizer has no token {token}; use the files of a Qwen-VL model")
    return int(found)
