"""`VLM2Vec`: backbone, last-token pooling, normalisation, adapters; one vector for a text, an image or both."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike
from peft import PeftModel
from torch import nn
from tqdm import tqdm

from vlm2vec.backbones.image_limits import LIMITS, given_limits
from vlm2vec.backbones.interface import PROJECTOR, VISION_TOWER, Backbone, ItemProcessor
from vlm2vec.backbones.prompts import DEFAULT_MAX_LEN, PromptFormat
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.choices import LoraSettings
from vlm2vec.device import device_of_rank
from vlm2vec.dora import kept_norms
from vlm2vec.errors import InputError
from vlm2vec.inputs.ahead import chunks_ahead
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.instructed import instructed
from vlm2vec.inputs.items import EncodeItem, ImageSource
from vlm2vec.inputs.packing import TokenBudget, default_batch_tokens
from vlm2vec.inputs.urls import downloaded
from vlm2vec.inputs.user_lists import make_items
from vlm2vec.inputs.vectors import as_vectors, refuse_not_finite
from vlm2vec.lora import add_adapter, load_adapter
from vlm2vec.model_folder.loading import (
    check_fit,
    choose_settings,
    find_folders,
    fingerprint_of_base,
    load_processor,
)
from vlm2vec.model_folder.saving import save_model, write_model_config
from vlm2vec.model_folder.settings import STORED, ChangedSettingWarning, ModelSettings

# `encode` shows its progress from this many items on.
LONG_LIST = 256


class VLM2Vec(nn.Module):
    """An encoder that maps a text, an image or both to one unit vector (https://arxiv.org/abs/2410.05160).

    Examples:
        >>> encoder = VLM2Vec.from_pretrained("TIGER-Lab/VLM2Vec-Full")
        >>> query = encoder.encode(
        ...     texts=["<|image_1|> Represent the given image with the following question: What is in the image"],
        ...     images=["example.jpg"],
        ... )
        >>> encoder.similarity(query, encoder.encode(texts=["A cat and a dog", "A cat and a tiger"]))

    Args:
        backbone: The model, or a PEFT model around it.
        processor: Makes the model's inputs.
        max_len: Truncate texts without an image to this many tokens; None: never. Items with an image are never
            truncated, as in the original.
        normalize: Scale vectors to length 1.
    """

    def __init__(
        self,
        backbone: Backbone | PeftModel,
        processor: ItemProcessor,
        max_len: int | None = DEFAULT_MAX_LEN,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.processor = processor
        self.max_len = max_len
        self.normalize = normalize
        self.base_fingerprint: str | None = None  # of the weights that were loaded, see `weights_fingerprint`

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        adapter: str | Path | None = None,
        max_len: int | Literal["stored"] | None = STORED,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        attn_implementation: str | None = None,
        normalize: bool | None = None,
        allow_other_base: bool = False,
        prompt_format: str | PromptFormat | None = None,
        **image_limits: int | None,
    ) -> VLM2Vec:
        """Loads an encoder with the settings that it was saved with (`ModelSettings`).

        An argument that differs from the saved setting takes precedence and raises a `ChangedSettingWarning`.

        Args:
            path: Checkpoint folder, adapter folder (its base model is loaded too), or Hugging Face repository.
            adapter: PEFT adapter folder or repository to put on top of `path`.
            max_len: See the class. "stored": the value used in training, or else the one that the code published with
                the prompt format uses (256 if that is not known).
            normalize: See the class. None: the value used in training, or else True.
            dtype: Data type of the weights. None: as stored in the files, as in transformers 5 and
                sentence-transformers 6. An adapter's weights stay in float32. A CPU without bfloat16 instructions is
                faster in torch.float32, which takes twice the memory.
            device: Where to put the model. None: a CUDA GPU if torch sees one (the one of `LOCAL_RANK`, else the
                first), else the CPU. Set `DS_ACCELERATOR=cpu` in the environment to use the CPU. Apple's MPS is only
                used if you ask for it, because it is not tested.
            attn_implementation: "sdpa" (the default, with flash kernels where the device has them), "eager" or
                "flash_attention_2" (needs the flash-attn package).
            allow_other_base: Load an adapter onto different weights than it was trained on, with a
                `ChangedSettingWarning` instead of an error.
            prompt_format: A `PromptFormat`, or the name of one of the model's family. None: the one used in training,
                if a file or the family names it.
            image_limits: Limits on image sizes, by name; each family has some of them
                (`vlm2vec/backbones/image_limits.py`). None: the value used in training, or else the one in the
                checkpoint's preprocessor_config.json.

        Raises:
            InputError: The files do not fit together; see `Backbone.from_pretrained` and `load_adapter`.
            TypeError: There is no option of this name.
        """
        unknown = sorted(image_limits.keys() - set(LIMITS))
        if unknown:
            raise TypeError(f"VLM2Vec.from_pretrained has no option {unknown[0]}; limits are {', '.join(LIMITS)}")
        path, folder, adapter_folder = find_folders(path, adapter)
        family = family_of_folder(folder)
        limits = given_limits(image_limits)
        given: dict[str, Any] = {"prompt_format": prompt_format, "normalize": normalize}
        given = {name: value for name, value in given.items() if value is not None} | limits
        if max_len != STORED:
            given["max_len"] = max_len
        settings, changes = choose_settings(folder, adapter_folder, given, family)
        for line in changes:
            warnings.warn(line, ChangedSettingWarning, stacklevel=2)
        base_fingerprint = fingerprint_of_base(folder, adapter_folder, allow_other_base)
        backbone = family.backbone.from_pretrained(path, dtype=dtype or "auto", attn_implementation=attn_implementation)
        if adapter_folder is not None:
            backbone = load_adapter(backbone, adapter_folder)
        processor = load_processor(folder, adapter_folder, settings.prompt_format, limits)
        encoder = cls(backbone, processor, settings.max_len, settings.normalize)
        encoder.base_fingerprint = base_fingerprint
        check_fit(processor, encoder.base, adapter_folder or folder)
        return encoder.to(device_of_rank() if device is None else device).eval()

    @property
    def base(self) -> Backbone:
        """The backbone without the adapter's wrapper."""
        return self.backbone.get_base_model() if isinstance(self.backbone, PeftModel) else self.backbone

    @property
    def device(self) -> torch.device:
        """Device that the inputs must be on."""
        return self.base.token_embeddings.device

    @property
    def hidden_size(self) -> int:
        """Width of the vectors."""
        return self.base.hidden_size

    @property
    def settings(self) -> ModelSettings:
        """The settings that `save_pretrained` writes to `vlm2vec_config.json`."""
        return ModelSettings(
            max_len=self.max_len,
            pooling="last",
            normalize=self.normalize,
            prompt_format=self.processor.prompt_format,
            base_fingerprint=self.base_fingerprint,
        ).with_limits(self.processor.image_limits)

    def autocast(self) -> AbstractContextManager[Any]:
        """Precision of a forward pass: autocast to bfloat16 if a float32 adapter is on a bfloat16 base.

        It is entered inside `forward`, because a DeepSpeed engine switches off CUDA autocast that is entered around it.
        """
        dtype = self.base.token_embeddings.dtype
        if not isinstance(self.backbone, PeftModel) or dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        strict_original: bool = False,
        **arguments: Any,
    ) -> torch.Tensor:
        """Computes the vectors of a chunk: the last real token's hidden state, normalised in float32.

        Args:
            input_ids: int64 (n, L), padded on the right.
            attention_mask: int64 (n, L), 1 on real tokens.
            strict_original: Reproduce the original code also where it makes a vector depend on the other rows of its
                batch (`Backbone.original_arguments`).
            arguments: The chunk's other inputs, passed on to the backbone's `forward` (`ItemEncoderInputs`).

        Returns:
            float32 (n, hidden).
        """
        with self.autocast():
            original = self.base.original_arguments() if strict_original else {}
            hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **arguments, **original)
        last = attention_mask.sum(dim=1) - 1
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last].float()
        return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled

    def encode(
        self,
        texts: Sequence[str | None] | None = None,
        images: Sequence[ImageSource | Sequence[ImageSource] | None] | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
        strict_original: bool = False,
        instruction: str | Sequence[str | None] | None = None,
        allow_urls: bool = False,
    ) -> torch.Tensor:
        """Encodes a list of items: texts, images, or both.

        The items are reordered, packed into batches and returned in the order given. Images are opened batch by batch,
        so that a long list needs no more memory than a short one.

        If the model's prompt format takes texts unchanged (VLM2Vec's own does), an item is one of

        - a text, truncated to `max_len` tokens. A tag `<|image_1|>` in a text without an image is ordinary text, as in
          the original;
        - an image (its text is None or blank), which gets the benchmark's prompt
          `<|image_1|> Represent the given image.`;
        - a text and an image: the text must contain the tag `<|image_1|>` where the image belongs;
        - a text and a list of images: the text must contain `<|image_1|>` to `<|image_n|>` once each. Images are
          inserted in the order of the list, not of their numbers, as in the original.

        Other prompt formats (`encoder.processor.prompt_format`) differ: a chat template, for example, may put images
        first, so that texts need no tags. An item with neither text nor image is an error, unless the format has a text
        for it.

        An image is a PIL image, a path, the content of a file (bytes), a uint8 array (height, width, 3) or
        (height, width), or, with `allow_urls`, an http or https URL. As in the original, an animation's first frame is
        used, EXIF orientation is not applied, CMYK and palettes are converted to RGB, and alpha is dropped, except
        where the prompt format blends it over white.

        Args:
            texts: One entry per item, None for an item without text; None if no item has a text. Any sequence with a
                length and an order, such as a pandas or Arrow column, which is read by position, not by label.
            images: One image or list of images per item, otherwise as `texts`.
            batch_tokens: Padded tokens in a batch. None: 16,384 (4,096 on a CPU). It does not change the result.
            show_progress: Show a progress bar. None: for 256 items or more.
            strict_original: Batch the items in the order given and choose the rope factors by the batch's padded
                width, as the original does. A vector then depends on the other items of its batch if one of them has
                more than 4,096 tokens.
            instruction: What the vectors are for: one for all items, or one per item. None: the prompt format's own.
                Prompt formats without a place for an instruction refuse it: put it into the text, or see
                `encode_queries`.
            allow_urls: Download images from http and https URLs into temporary files first, from public addresses only
                and within limits on size and time (`vlm2vec/inputs/urls.py`).

        Returns:
            float32 (n, hidden) on the CPU, in the order given.

        Raises:
            InputError: An item breaks one of these rules; an image is damaged, has more than 8 bits per channel or too
                many pixels; a vector is NaN or infinite. The message gives the item's index.
        """
        items = make_items(texts, images, self.processor.prompt_format, instruction, allow_urls)
        return self._encode(items, batch_tokens, show_progress, strict_original, allow_urls)

    def encode_queries(
        self,
        texts: Sequence[str | None] | None = None,
        images: Sequence[ImageSource | Sequence[ImageSource] | None] | None = None,
        instruction: str | Sequence[str | None] | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
        allow_urls: bool = False,
    ) -> torch.Tensor:
        r"""Encodes the queries of a search, with the instruction where the model expects it.

        Texts are a user's own words, without image tags. If the prompt format has a place for an instruction, it is
        put there, else before the text and after the images. An instruction that contains `{text}` is a template for
        the whole text, for models that were trained on such texts:
        `"Find an image that matches the given caption: {text}\n"`.

        Args:
            texts: See `encode`.
            images: See `encode`.
            instruction: One for all items, or one per item. None or "": the prompt format's own, if it has one.
            batch_tokens: See `encode`.
            show_progress: See `encode`.
            allow_urls: See `encode`.

        Returns:
            float32 (n, hidden) on the CPU, in the order given.

        Raises:
            InputError: As in `encode`, or an image tag in the text of an item with images.
        """
        prompt_format = self.processor.prompt_format
        items = make_items(texts, images, prompt_format, instruction, allow_urls)
        items = [instructed(item, prompt_format) for item in items]
        return self._encode(items, batch_tokens, show_progress, False, allow_urls)

    def encode_documents(
        self,
        texts: Sequence[str | None] | None = None,
        images: Sequence[ImageSource | Sequence[ImageSource] | None] | None = None,
        instruction: str | Sequence[str | None] | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
        allow_urls: bool = False,
    ) -> torch.Tensor:
        """Encodes the documents of a search; arguments and rules are those of `encode_queries`.

        An image without text and instruction gets the prompt format's prompt for a single image. Most models were
        trained with an instruction for queries, and with none or a different one for documents.
        """
        return self.encode_queries(texts, images, instruction, batch_tokens, show_progress, allow_urls)

    def _encode(
        self,
        items: list[EncodeItem],
        batch_tokens: int | None,
        show_progress: bool | None,
        strict_original: bool,
        allow_urls: bool,
    ) -> torch.Tensor:
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens must be at least 1, not {batch_tokens}")
        if allow_urls:
            with downloaded(items) as local:
                return self._encode(local, batch_tokens, show_progress, strict_original, allow_urls=False)
        if batch_tokens is None:
            batch_tokens = default_batch_tokens(self.device)
        if show_progress is None:
            show_progress = len(items) >= LONG_LIST
        inputs = ItemEncoderInputs(self.processor, self.max_len)
        packing = TokenBudget(batch_tokens, max_shortfall=1.0, images_apart=False, keep_order=strict_original)
        batches = packing.pack([inputs.measure_item(item) for item in items])
        vectors = torch.empty(len(items), self.hidden_size)
        was_training = self.training
        self.eval()
        try:
            with (
                torch.no_grad(),
                kept_norms(self),
                tqdm(total=len(items), unit="item", disable=not show_progress) as progress,
            ):
                for batch, chunk in zip(batches, chunks_ahead(inputs, items, batches), strict=True):
                    arguments = chunk.arguments(self.device, dummy_image=False)
                    vectors[batch] = self(**arguments, strict_original=strict_original).cpu()
                    progress.update(len(batch))
        finally:
            self.train(was_training)
        refuse_not_finite(vectors)
        return vectors

    @staticmethod
    def similarity(a: ArrayLike | torch.Tensor, b: ArrayLike | torch.Tensor) -> torch.Tensor:
        """Computes the dot products of vectors (n, hidden) and (m, hidden); cosines, if their length is 1.

        Args:
            a: A tensor, an array, or a list, tuple or column of vectors, read by position.
            b: The same.

        Returns:
            float32 (n, m).

        Raises:
            InputError: The argument has no order (a set, a dictionary, a generator) or contains no vectors.
        """
        return as_vectors("a", a) @ as_vectors("b", b).T

    def add_lora(self, settings: LoraSettings | None = None) -> None:
        """Puts a new adapter on the backbone; only the adapter is trainable afterwards.

        Frozen layers (`freeze`) get none.

        Args:
            settings: Rank, target layers and so on. None: those of the original.

        Raises:
            InputError: A target matches no layer or only frozen ones, a value is out of range, or the model has an
                adapter already.
        """
        if isinstance(self.backbone, PeftModel):
            raise InputError("the model has an adapter already; merge it first (merge_lora)")
        self.backbone = add_adapter(self.backbone, settings or LoraSettings())

    def merge_lora(self) -> None:
        """Merges the adapter into the weights and removes it. Does nothing without an adapter."""
        if isinstance(self.backbone, PeftModel):
            self.backbone = self.backbone.merge_and_unload()

    def freeze(self, vision_tower: bool = False, projector: bool = False) -> None:
        """Excludes parts of the model from training; a later `add_lora` leaves them out.

        Args:
            vision_tower: Freeze the part that turns pixels into features.
            projector: Freeze the part that turns features into the decoder's image tokens.

        Raises:
            InputError: The model has an adapter already, whose layers in these parts would be saved untrained.
        """
        parts = [name for name, chosen in ((VISION_TOWER, vision_tower), (PROJECTOR, projector)) if chosen]
        if isinstance(self.backbone, PeftModel) and parts:
            raise InputError("freeze parts of the model before an adapter is put on it: frozen parts get none")
        self.base.freeze(*parts)

    def gradient_checkpointing_enable(self) -> None:
        """Recomputes each layer's activations in the backward pass instead of storing them."""
        # transformers 5.23 renamed the method and warns about the old name; older versions have only the old one.
        enable = getattr(self.base, "activation_checkpointing_enable", None) or self.base.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        """Stores all activations, which is the default."""
        base = self.base
        (getattr(base, "activation_checkpointing_disable", None) or base.gradient_checkpointing_disable)()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `from_pretrained` reads: the whole model, or an adapter with the name of its base.

        Files get their final names only when all of them are complete. They replace all files of an earlier save.

        Raises:
            InputError: The folder holds the other kind: a whole model where an adapter is to be saved, or an adapter
                where a whole model is to be saved.
        """
        save_model(self.backbone, Path(folder), self.save_configuration)

    def save_configuration(self, folder: str | Path, with_base: bool = False) -> None:
        """Writes everything that `save_pretrained` writes except the weights; an export adds a checkpoint's weights.

        Args:
            folder: Where to write.
            with_base: If the model has an adapter, also write its base's configuration, into a separate folder.
        """
        folder = Path(folder)
        write_model_config(self.backbone, folder, with_base)
        self.processor.save_pretrained(folder)
        self.settings.write(folder)
