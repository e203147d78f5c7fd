"""Phi-3-V's processor: from texts and images to token ids, crops and the model's arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field
from tokenizers import Tokenizer, models
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from vlm2vec.backbones.checkpoint import CONFIG_FILE
from vlm2vec.backbones.collation import JoinedRows, padded_ids
from vlm2vec.backbones.image_limits import given_limits, refuse_limits
from vlm2vec.backbones.interface import CollatedItems, ItemProcessor, ProcessedItem
from vlm2vec.backbones.phi3_v.config_file import read_crop_and_patch_size
from vlm2vec.backbones.phi3_v.configuration import CLIP_VIT_LARGE_PATCH14_336
from vlm2vec.backbones.phi3_v.image_processor import CLIP_MEAN, CLIP_STD, Phi3VImageProcessor, num_tokens_of
from vlm2vec.backbones.prompts import Prompt, PromptFormat
from vlm2vec.backbones.tokenizer_files import TokenizerFiles, encoded, load_tokenizer
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import StrictModel, checked, read_json, shorten, write_json
from vlm2vec.item_rules import IMAGE_TAG, image_tags

PREPROCESSOR_FILE = "preprocessor_config.json"

# The family's only built-in format: the text unchanged, with images at its tags.
RAW = PromptFormat(name="phi3_v")
LIMITS = ("num_crops",)
_FIXED = ("image", "positions", "transparency", "resize")

# Default of Phi-3.5-V.
_NUM_CROPS = 4

_THREE = Field(min_length=3, max_length=3)
_Size = Annotated[int, Field(ge=1, le=8192)]


class PreprocessorSettings(StrictModel):
    """Checked fields of preprocessor_config.json; null means absent.

    Attributes:
        num_crops: Most local crops per image.
        crop_size, patch_size: Sizes in pixels; used if there is no config.json (in an adapter).
        image_mean, image_std: Mean and standard deviation per channel, for values in 0..1.
    """

    num_crops: Annotated[int, Field(ge=1, le=1024)] | None = None
    crop_size: _Size | None = None
    patch_size: _Size | None = None
    image_mean: Annotated[list[Annotated[float, Field(ge=-1e3, le=1e3)]], _THREE] | None = None
    image_std: Annotated[list[Annotated[float, Field(ge=1e-3, le=1e3)]], _THREE] | None = None

    @classmethod
    def read(cls, folder: Path) -> PreprocessorSettings:
        """Reads the file's settings; all are None if there is no file.

        Raises:
            InputError: The file is damaged, or a value is impossible.
        """
        file = folder / PREPROCESSOR_FILE
        return checked(cls, read_json(file), file) if file.is_file() else cls()

    @property
    def limits(self) -> dict[str, int]:
        """The image limits in the file."""
        return given_limits({"num_crops": self.num_crops})


# Most texts, and longest text in characters, whose token ids are cached: 16,384 of 400 characters take about 20 MB.
_REMEMBERED_TEXTS, _REMEMBERED_CHARACTERS = 1 << 14, 400

# Arguments of `Phi3VModel.forward`.
_PIXELS, _SIZES, _DUMMY = "pixel_values", "image_sizes", "dummy_image"


class Phi3VProcessor(ItemProcessor):
    """Tokenizer and image processor of Phi-3-V.

    A text names its images with tags `<|image_1|>`, `<|image_2|>`, ... A tag is not a token: the text is split at the
    tags, every piece is tokenized separately with a bos token, and image k's tokens, with id -k, go between the pieces.

    Args:
        tokenizer: The checkpoint's tokenizer, from tokenizer.json.
        image_processor: Turns images into crops.
        prompt_format: How prompts are made.

    Raises:
        InputError: The family does not support the format.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: Phi3VImageProcessor,
        prompt_format: PromptFormat = RAW,
    ) -> None:
        self.check_format(prompt_format)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.prompt_format = prompt_format
        self._tokenizer_files = TokenizerFiles({}, len(tokenizer))
        # The Rust object is used directly: transformers' wrapper takes ten times as long for a short text.
        self._encoder = tokenizer.backend_tokenizer
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._ids_of_text: dict[str, tuple[int, ...]] = {}

    @property
    def num_crops(self) -> int:
        """Most local crops per image."""
        return self.image_processor.num_crops

    @property
    def image_limits(self) -> Mapping[str, int]:
        """The limits in use."""
        return {"num_crops": self.num_crops}

    @classmethod
    def check_format(cls, prompt_format: PromptFormat) -> None:
        """Checks that image tokens, positions, resizing and alpha are as in the original; only these are supported."""
        for name in _FIXED:
            value, only = getattr(prompt_format, name), getattr(RAW, name)
            if value != only:
                raise InputError(
                    f"prompt format {prompt_format.name!r}: {name} is {shorten(value)}; a phi3_v supports only "
                    f"{shorten(only)}"
                )

    @property
    def largest_image_size(self) -> tuple[int, int]:
        """Width and height in pixels of an image that gets all crops, in one row."""
        return self.image_processor.crop_size * self.num_crops, self.image_processor.crop_size

    @property
    def planned_image_size(self) -> tuple[int, int]:
        """Width and height in pixels of a square image, which gets all crops if their number is a square."""
        return self.image_processor.crop_size, self.image_processor.crop_size

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        prompt_format: PromptFormat | None = None,
        *,
        num_crops: int | None = None,
        **others: int | None,
    ) -> Phi3VProcessor:
        """Reads tokenizer.json, preprocessor_config.json and, for the crop size, config.json's `vision_config`.

        Args:
            folder: A checkpoint folder.
            prompt_format: The prompt format; None: the family's only one.
            num_crops: Overrides the folder's preprocessor_config.json.
            others: Other limits, which this family does not have; refused.

        Raises:
            InputError: A file is missing or damaged, the number of crops is unknown, or the family does not support the
                format.
        """
        refuse_limits(given_limits(others), LIMITS, "phi3_v")
        folder = Path(folder)
        settings = PreprocessorSettings.read(folder)
        num_crops = num_crops or settings.num_crops
        if num_crops is None:
            raise InputError(f"{folder}: {PREPROCESSOR_FILE} has no num_crops; pass num_crops (the paper uses 4)")
        crop_size, patch_size = _crop_and_patch_size(folder, settings)
        mean, std = tuple(settings.image_mean or CLIP_MEAN), tuple(settings.image_std or CLIP_STD)
        try:
            image_processor = Phi3VImageProcessor(num_crops, crop_size, patch_size, mean, std)
        except ValueError as error:
            raise InputError(f"{folder / PREPROCESSOR_FILE}: {error}") from error
        processor = cls(load_tokenizer(folder), image_processor, prompt_format or RAW)
        processor._tokenizer_files = TokenizerFiles.read(folder, len(processor.tokenizer))
        return processor

    @classmethod
    def without_tokenizer(
        cls,
        config: PreTrainedConfig,
        prompt_format: PromptFormat | None = None,
        *,
        num_crops: int | None = None,
        **others: int | None,
    ) -> Phi3VProcessor:
        """See `ItemProcessor.without_tokenizer`."""
        refuse_limits(given_limits(others), LIMITS, "phi3_v")
        vision = config.vision_config
        blank = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="<|endoftext|>")
        images = Phi3VImageProcessor(num_crops or _NUM_CROPS, vision.image_size, vision.patch_size)
        return cls(blank, images, prompt_format or RAW)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer's files, unchanged if they were read from a folder, and preprocessor_config.json."""
        images = self.image_processor
        settings = {
            "num_crops": images.num_crops,
            "crop_size": images.crop_size,
            "patch_size": images.patch_size,
            "image_mean": list(images.image_mean),
            "image_std": list(images.image_std),
            "num_img_tokens": images.grid**2,
            "do_convert_rgb": True,
            "image_processor_type": "Phi3VImageProcessor",
            "processor_class": "Phi3VProcessor",
        }
        self._tokenizer_files.write(Path(folder), self.tokenizer)
        write_json(Path(folder) / PREPROCESSOR_FILE, settings)

    def num_image_tokens(self, width: int, height: int) -> int:
        """Number of tokens of an image with this size in pixels, computed without decoding it."""
        return self.image_processor.layout(width, height).num_tokens

    def num_vision_units(self, width: int, height: int) -> int:
        """Number of crops of an image with this size in pixels: the global view and the real local crops."""
        return self.image_processor.layout(width, height).num_crops

    def tokenize(
        self,
        text: str,
        image_tokens: Sequence[int] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> list[int]:
        """Token ids of an item whose images have `image_tokens` tokens each.

        Without images, the prompt is tokenized unchanged (a stray tag is ordinary text, as in the original) and
        truncated on the right to `max_len` tokens, bos included. With images, nothing is truncated.

        Raises:
            InputError: The tags are not exactly one each of `<|image_1|>` to `<|image_n|>`, the text holds a lone
                surrogate, which is no character, or the format has no place for an instruction.
        """
        prompt = self.prompt_format.prompt(text, len(image_tokens), instruction)
        if not image_tokens:
            return self._text_ids(prompt, max_len)
        text = str(prompt)
        tags = image_tags(text, len(image_tokens))
        pieces = [self._ids(piece) for piece in IMAGE_TAG.split(text)[::2]]
        ids = list(pieces[0])
        for tag, piece in zip(tags, pieces[1:], strict=True):
            ids += [-tag] * image_tokens[tag - 1]
            # The original interleaves pieces and images and keeps an empty last piece, which becomes a lone bos.
            ids += piece
        return ids

    def _text_ids(self, prompt: Prompt, max_len: int | None) -> list[int]:
        if not prompt.before and not prompt.after:
            return list(self._ids(str(prompt))[:max_len])
        whole = encoded(self._encoder, str(prompt))
        return prompt.truncated(whole.ids, whole.offsets, max_len)

    def _ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, cached if it is short: items share instructions, and measured items are tokenized again
        when they are encoded, in workers that inherit the cache."""
        ids = self._ids_of_text.get(text)
        if ids is None:
            ids = tuple(encoded(self._encoder, text).ids)
            if len(text) <= _REMEMBERED_CHARACTERS and len(self._ids_of_text) < _REMEMBERED_TEXTS:
                self._ids_of_text[text] = ids
        return ids

    def process_item(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        max_len: int | None = None,
        instruction: str | None = None,
    ) -> ProcessedItem:
        """Makes one item, with real crops only and without padding.

        Raises:
            InputError: See `tokenize`; or an image is too thin.
        """
        if not images:
            return ProcessedItem(torch.tensor(self.tokenize(text, (), max_len, instruction)))
        sizes = [image.size for image in images]
        ids = self.tokenize(text, [self.num_image_tokens(*size) for size in sizes], max_len, instruction)
        crops = [self.image_processor.crops(image) for image in images]
        return item_with_images(
            torch.tensor(ids),
            crops[0] if len(crops) == 1 else torch.cat(crops),  # avoids the copy for a single image
            torch.tensor([self.image_processor.image_size(*size) for size in sizes]),
        )

    def blank_item(self, num_tokens: int, image_sizes: Sequence[tuple[int, int]] = ()) -> ProcessedItem:
        """See `ItemProcessor.blank_item`.

        An image's crops are put in one row, which needs the fewest separators; they are at most 1.6 % of its tokens.
        """
        images, ids = self.image_processor, torch.ones(num_tokens, dtype=torch.int64)
        columns = [images.layout(*size).num_crops - 1 for size in image_sizes]
        image_tokens = sum(num_tokens_of(1, count, images.grid) for count in columns)
        if image_tokens > num_tokens:
            raise ValueError(f"a row of {num_tokens} tokens cannot hold images of {image_tokens} tokens")
        ids[:image_tokens] = -1
        if not columns:
            return ProcessedItem(ids)
        edge = images.crop_size
        crops = torch.empty(sum(columns) + len(columns), 3, edge, edge, device="meta")
        return item_with_images(ids, crops, torch.tensor([(edge, edge * count) for count in columns]))

    def collate(self, items: Iterable[ProcessedItem], vision_units: int, dtype: torch.dtype) -> CollatedItems:
        """Arguments of `Phi3VModel.forward`; see `ItemProcessor.collate`."""
        return collate(items, self.pad_token_id, vision_units, dtype)

    def __call__(
        self, text: str, images: Sequence[Image.Image] | Image.Image | None = None, max_len: int | None = None
    ) -> dict[str, Any]:
        """Makes one item in the form of the original processor.

        Returns:
            input_ids int64 (1, L); pixel_values float32 (n, num_crops + 1, 3, S, S), the global view first, then the
            local crops, then zeros; image_sizes int64 (n, 2), padded (height, width); num_img_tokens, a list of n.
            Without images pixel_values and image_sizes are None.

        Raises:
            InputError: See `process_item`.
        """
        images = [images] if isinstance(images, Image.Image) else list(images or ())
        item = self.process_item(text, images, max_len)
        num_img_tokens = [self.num_image_tokens(*image.size) for image in images]
        padded = None
        if item.has_image:
            pixels = item.tensors[_PIXELS]
            counts = [self.num_vision_units(*image.size) for image in images]
            padded = pixels.new_zeros(len(images), self.num_crops + 1, *pixels.shape[1:])
            for row, crops in zip(padded, torch.split(pixels, counts), strict=True):
                row[: len(crops)] = crops
        return {
            "input_ids": item.input_ids[None],
            "pixel_values": padded,
            "image_sizes": item.host_values.get(_SIZES),
            "num_img_tokens": num_img_tokens,
        }


def item_with_images(input_ids: torch.Tensor, crops: torch.Tensor, image_sizes: torch.Tensor) -> ProcessedItem:
    """Makes an item of this family.

    Args:
        input_ids: Token ids, int64 (L,); image k of the item is -k, once per image token.
        crops: All images' real crops concatenated, float (real crops, 3, S, S).
        image_sizes: Padded (height, width) of each image in pixels, int64 (images, 2).
    """
    return ProcessedItem(input_ids, {_PIXELS: crops}, {_SIZES: image_sizes}, len(crops))


def collate(items: Iterable[ProcessedItem], pad_token_id: int, vision_units: int, dtype: torch.dtype) -> CollatedItems:
    """Builds the arguments of `Phi3VModel.forward` for some items; see `ItemProcessor.collate`.

    Crops are joined in the order of items. Sizes stay on the host, where the layout of the views is computed: on the
    device, every call would wait for them. The dummy is a flag that makes the model run its tower on one zero crop.
    """
    pixels = JoinedRows(vision_units, dtype)
    ids: list[torch.Tensor] = []
    sizes: list[torch.Tensor] = []
    for item in items:
        ids.append(item.input_ids)
        if item.has_image:
            pixels.add(item.tensors[_PIXELS])
            sizes.append(item.host_values[_SIZES])
        del item  # frees its crops before the next item's are made
    tensors = padded_ids(ids, pad_token_id)
    if pixels.joined is None:
        return CollatedItems(tensors, {}, {_DUMMY: True}, len(ids), has_image=False)
    return CollatedItems({**tensors, _PIXELS: pixels.joined}, {_SIZES: torch.cat(sizes)}, {}, len(ids), has_image=True)


def collate_items(items: Sequence[ProcessedItem], pad_token_id: int) -> dict[str, torch.Tensor | None]:
    """Builds all arguments of `Phi3VModel.forward` for some items in one dictionary.

    Returns:
        input_ids int64 (n, L), padded on the right; attention_mask int64 (n, L), 1 on real tokens; pixel_values float32
        (all real crops, 3, S, S) or None; image_sizes int64 (all images, 2) or None, to be left on the CPU.
    """
    collated = collate(items, pad_token_id, sum(item.vision_units for item in items), torch.float32)
    return {_PIXELS: None, _SIZES: None, **collated.tensors, **collated.host_values}


def _crop_and_patch_size(folder: Path, settings: PreprocessorSettings) -> tuple[int, int]:
    """Reads both from config.json, or from preprocessor_config.json if there is no config.json (in an adapter)."""
    if (folder / CONFIG_FILE).is_file():
        return read_crop_and_patch_size(folder)
    default = CLIP_VIT_LARGE_PATCH14_336
    return settings.crop_size or default["image_size"], settings.patch_size or default["patch_size"]
