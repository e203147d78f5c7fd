"""`VLM2Vec` as a module of the sentence-transformers library (6.x).

Exported folders name `VLM2VecModule` in their modules.json, so that

    SentenceTransformer(folder, trust_remote_code=True).encode(["a text", image, {"text": ..., "image": image}])

gives the vectors that `VLM2Vec.encode` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentence_transformers.base.modality import is_image_url_or_path
from sentence_transformers.base.modules import InputModule
from transformers import PreTrainedTokenizerFast

from vlm2vec.backbones.image_limits import LIMITS
from vlm2vec.backbones.prompts import TEXT, PromptFormat
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.instructed import instructed
from vlm2vec.inputs.items import EncodeItem, ImageSource
from vlm2vec.inputs.user_lists import make_items
from vlm2vec.item_rules import IMAGE_TAG
from vlm2vec.model_folder.settings import SETTINGS_FILE

# What `SentenceTransformer(..., model_kwargs=..., processor_kwargs=...)` may carry.
_MODEL_OPTIONS = frozenset({"dtype", "torch_dtype", "attn_implementation"})
_PROCESSOR_OPTIONS = frozenset({*LIMITS, "prompt_format"})
_TAG = "<|image_"
_SEARCH_TASKS = ("query", "document")  # what the library's encode_query and encode_document pass

# Entries of `preprocess` beside the encoder's tensors: what stays on the host, and the tensors' names.
_HOST_INPUTS, _NAMES = "host_inputs", "encoder_inputs"


class VLM2VecModule(InputModule):
    """The whole encoder as the first and only module: inputs, model, pooling, normalisation.

    Inputs are texts, images (PIL images, paths) or dictionaries {"text": ..., "image": image or images}, in any
    mixture. A text beside one image gets the tag `<|image_1|>` in front if it has no tag; a text beside several
    images must hold their tags, as in `VLM2Vec.encode`. An image alone gets the benchmark's prompt.

    Args:
        encoder: The encoder; its `max_len` is sentence-transformers' `max_seq_length`.
    """

    config_file_name = SETTINGS_FILE
    config_keys = ["max_len"]  # noqa: RUF012 - as the base class has it

    def __init__(self, encoder: VLM2Vec) -> None:
        super().__init__()
        self.encoder = encoder

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **_: Any,
    ) -> VLM2VecModule:
        """Called by sentence-transformers.

        Args:
            model_name_or_path, subfolder, token, cache_folder, revision, local_files_only: As it passes them.
            model_kwargs: May hold dtype and attn_implementation.
            processor_kwargs: May hold prompt_format and the image limits of the model's family.

        Raises:
            InputError: Another option, or see `VLM2Vec.from_pretrained`.
        """
        folder = cls.load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        if folder is None:
            raise InputError(f"{model_name_or_path}: no such folder, and not to be had from the Hugging Face hub")
        options = _options("model_kwargs", model_kwargs, _MODEL_OPTIONS)
        options |= _options("processor_kwargs", processor_kwargs, _PROCESSOR_OPTIONS)
        dtype = options.pop("dtype", options.pop("torch_dtype", None))
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        # sentence-transformers moves the model to its device itself.
        return cls(VLM2Vec.from_pretrained(folder, dtype=dtype, device="cpu", **options))

    @property
    def modalities(self) -> list[Any]:
        """Texts, images, both; "message" is the library's word for a mixture of them in one batch."""
        return ["text", "image", ("image", "text"), "message"]

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The encoder's."""
        return self.encoder.processor.tokenizer

    @property
    def max_len(self) -> int | None:
        """Texts without image are cut to this many tokens."""
        return self.encoder.max_len

    @property
    def max_seq_length(self) -> int | None:
        """sentence-transformers' name for `max_len`."""
        return self.encoder.max_len

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self.encoder.max_len = value

    def get_embedding_dimension(self) -> int:
        """Width of the vectors."""
        return self.encoder.hidden_size

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **_: Any
    ) -> dict[str, Any]:
        """The model's inputs.

        Args:
            inputs: See the class.
            prompt: The instruction of all inputs, if the model's prompt format has a place for one; otherwise it is put
                in front of every text as it stands. In `encode_query` and `encode_document`, and where it holds
                `{text}`, it is the instruction of `VLM2Vec.encode_queries`, for texts without image tags.
            task: "query" or "document" from `encode_query` and `encode_document`.

        Raises:
            InputError: An input of another kind; the message names its place in the batch.
        """
        prompt_format = self.encoder.processor.prompt_format
        pairs = [_text_and_images(index, value) for index, value in enumerate(inputs)]
        items = _items(pairs, prompt or "", task in _SEARCH_TASKS, prompt_format)
        always_dummy = self.encoder.base.trains_images_alone
        makes_chunks = ItemEncoderInputs(self.encoder.processor, self.max_len, always_dummy=always_dummy)
        chunk = makes_chunks.chunk_of(items)
        return {**chunk.inputs, _HOST_INPUTS: dict(chunk.host_inputs), _NAMES: tuple(chunk.inputs)}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, float32 (n, hidden), rows of length 1.

        Raises:
            InputError: NaN or infinity in a vector, outside of training.
        """
        # The library moves every tensor to the device; those that Python code reads come back.
        host_inputs = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in features[_HOST_INPUTS].items()
        }
        vectors = self.encoder(**{name: features[name] for name in features[_NAMES]}, **host_inputs)
        # While encoding alone: the library fetches every batch's vectors anyway, a training step would have to wait.
        if not torch.is_grad_enabled() and not bool(torch.isfinite(vectors).all()):
            raise InputError("the model gives NaN or infinity; check the checkpoint and its precision")
        return {**features, "sentence_embedding": vectors}

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Writes the encoder's folder; sentence-transformers adds its own files."""
        self.encoder.save_pretrained(output_path)


def _options(name: str, given: dict[str, Any] | None, known: frozenset[str]) -> dict[str, Any]:
    unknown = sorted((given or {}).keys() - known)
    if unknown:
        raise InputError(f"{name}: {', '.join(unknown)}: not an option of VLM2Vec; it has {', '.join(sorted(known))}")
    return dict(given or {})


def _items(
    pairs: Sequence[tuple[str, list[ImageSource] | None]], prompt: str, searches: bool, prompt_format: PromptFormat
) -> list[EncodeItem]:
    """Texts and images with the prompt where it belongs; see `VLM2VecModule.preprocess`."""
    as_instruction = [
        bool(prompt) and (TEXT in prompt or (searches and not (images and IMAGE_TAG.search(text))))
        for text, images in pairs
    ]
    prefix = "" if prompt_format.takes_instruction else prompt
    texts = [
        text if apart else _tagged(prefix + text, images)
        for apart, (text, images) in zip(as_instruction, pairs, strict=True)
    ]
    instructions = [prompt if apart or prompt_format.takes_instruction else None for apart in as_instruction]
    items = make_items(texts, [images for _, images in pairs], prompt_format, instructions)
    return [
        instructed(item, prompt_format) if apart else item for apart, item in zip(as_instruction, items, strict=True)
    ]


def _tagged(text: str, images: Sequence[ImageSource] | None) -> str:
    """The text with the tag of its only image in front, unless it has tags."""
    return f"{_TAG}1|> {text}" if text and images and len(images) == 1 and _TAG not in text else text


def _text_and_images(index: int, value: Any) -> tuple[str, list[ImageSource] | None]:
    """One input as text and images; None for no images."""
    if isinstance(value, dict):
        unknown = sorted(value.keys() - {"text", "image"})
        if unknown or not value:
            raise InputError(f"input {index}: expected {{'text': ..., 'image': ...}}, not the keys {sorted(value)}")
        text, images = value.get("text") or "", value.get("image")
    elif isinstance(value, str) and not is_image_url_or_path(value):
        text, images = value, None
    else:
        text, images = "", value
    if not isinstance(text, str):
        raise InputError(f"input {index}: a text must be a string, not {type(text).__name__}")
    if images is None:
        return text, None
    listed = list(images) if isinstance(images, (list, tuple)) else [images]
    for image in listed:
        if not isinstance(image, (Image.Image, str, Path, bytes)):
            raise InputError(
                f"input {index}: an image must be a PIL image or a path, not {type(image).__name__} "
                "(PIL.Image.fromarray makes one of an array)"
            )
    return text, listed
