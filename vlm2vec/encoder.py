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
        backbone: the model, or a PEFT model around it.
        processor: makes its inputs.
        max_len: texts without an image are truncated to this many tokens; None: not at all. Items with an image are
            never truncated, as in the original.
        normalize: scale vectors to length 1.
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
        """Loads an encoder, with the settings that it was saved with (see `ModelSettings`).

        An argument that differs from what was saved wins, with a `ChangedSettingWarning`.

        Args:
            path: a checkpoint folder, an adapter folder (its base is then loaded too), or a Hugging Face repository.
            adapter: a PEFT adapter folder or repository on top of `path`.
            max_len: see the class; "stored": as it was trained with, else as its prompt format's own code has it (256
                where that is not known).
            normalize: see the class; None: as it was trained with, else True.
            dtype: Of the weights; None: as stored in the files, as transformers 5 and sentence-transformers 6 do. An
                adapter's weights are kept in float32. A CPU without instructions for bfloat16 computes faster in
                torch.float32, which takes twice the memory.
            device: Where to put the model; None: a CUDA GPU if torch sees one (that of `LOCAL_RANK`, else the first),
                else the CPU. `DS_ACCELERATOR=cpu` in the environment asks for the CPU. Apple's MPS is never chosen by
                itself: nothing here was tested on it.
            attn_implementation: "sdpa" (the default, with flash kernels where the device has them), "eager" or
                "flash_attention_2" (needs the flash-attn package).
            allow_other_base: load an adapter on other weights than it was trained on, with a `ChangedSettingWarning`.
            prompt_format: how prompts are made: a `PromptFormat`, or the name of one that the model's family has; None:
                as it was trained with, if a file or the family can tell.
            image_limits: the limits on image sizes that the model's family has (`vlm2vec/backbones/image_limits.py`)
                by name; None: as it was trained with, else what the checkpoint's preprocessor_config.json says.

        Raises:
            InputError: the files do not fit together; see `Backbone.from_pretrained` and `load_adapter`.
            TypeError: no option of this name.
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
        """The backbone itself, without the adapter's wrapper."""
        return self.backbone.get_base_model() if isinstance(self.backbone, PeftModel) else self.backbone

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return self.base.token_embeddings.device

    @property
    def hidden_size(self) -> int:
        """Width of the vectors."""
        return self.base.hidden_size

    @property
    def settings(self) -> ModelSettings:
        """What a saved model's `vlm2vec_config.json` says of it."""
        return ModelSettings(
            max_len=self.max_len,
            pooling="last",
            normalize=self.normalize,
            prompt_format=self.processor.prompt_format,
            base_fingerprint=self.base_fingerprint,
        ).with_limits(self.processor.image_limits)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a forward pass: with an adapter in float32 on a base in bfloat16, autocast to bfloat16.

        It is entered inside of `forward`: around a DeepSpeed engine, the engine would switch CUDA's autocast off again.
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
        """Vectors of a chunk (`ItemEncoderInputs`): the last real token's state, normalised in float32.

        Args:
            input_ids: int64 (n, L), padded on the right.
            attention_mask: int64 (n, L), 1 on real tokens.
            strict_original: compute as the original code does where a vector then depends on its neighbours
                (`Backbone.original_arguments`).
            arguments: what else the chunk holds for the backbone's `forward`.

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
        """Encodes a list of items. Images are opened batch by batch, so that memory stays flat on long lists.

        An item, for a model whose prompt format is the text as it stands, is

        - a text: truncated to `max_len` tokens. A tag `<|image_1|>` in a text without image is ordinary text, as in
          the original;
        - an image (text None or blank): gets the benchmark's prompt `<|image_1|> Represent the given image.`;
        - text and image: the text must hold the tag `<|image_1|>` where the image belongs, else `InputError`;
        - text and several images (a list): the text must hold `<|image_1|>` to `<|image_n|>` once each. Images
          enter in the order of the list whatever the tags' order, as in the original.

        A model may have another `PromptFormat` (`encoder.processor.prompt_format`): in a chat template, for example,
        images may come first, so that texts need no tags.

        An item with neither text nor image is an `InputError`, unless the format has a text for it.

        Images are PIL images, paths, file contents (bytes), uint8 arrays of height x width x 3 or height x width,
        or, with `allow_urls`, http and https URLs.
        Alpha is dropped, or blended over white where the prompt format says so;
        the first frame of an animation counts, EXIF orientation is not applied,
        CMYK and palettes are converted (all as in the original); damaged files, more than 8 bits a channel and
        decompression bombs are an `InputError`.

        Args:
            texts: one entry an item, None where an item has no text; None if no item has one. A list, or anything else
                with a length and an order, such as a column of pandas or Arrow, which is read in its order whatever its
                labels.
            images: as `texts`, with an image or a list of images an item.
            batch_tokens: padded tokens of a batch; None: 16,384 (4,096 on a CPU). It does not change the result.
            show_progress: None: from 256 items on.
            strict_original: batches of neighbours in the order given, where the padded width of the batch chooses the
                rope factors, as in the original: vectors then depend on their neighbours when one of them is longer
                than 4,096 tokens.
            instruction: what the vectors are for, one for all items or one an item, for models whose prompt format has
                a place for it; None: the format's own. Others refuse one: put it into the text, or see
                `encode_queries`.
            allow_urls: Fetch images from http and https URLs into temporary files first, from public addresses only
                and within limits of size and time (`vlm2vec/inputs/urls.py`).

        Returns:
            float32 (n, hidden) on the CPU, in the order given.

        Raises:
            InputError: see above, or NaN or infinity in a vector; the message names the item's number, from 0.
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
        r"""Encodes the queries of a search: the prompt format puts the instruction where the model expects it.

        Texts are a user's own words, without image tags. A format with a place for an instruction puts it there; in
        others it comes before the text and behind the images. An instruction with `{text}` in it is a whole text, for
        models trained on such texts: `"Find an image that matches the given caption: {text}\n"`.

        Args:
            texts: See `encode`.
            images: See `encode`.
            instruction: One for all items, or one an item; None or "": none, or the format's own.
            batch_tokens: See `encode`.
            show_progress: See `encode`.
            allow_urls: See `encode`.

        Returns:
            float32 (n, hidden) on the CPU, in the order given.

        Raises:
            InputError: As `encode`, or an image tag in the text of an item with images.
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
        """Encodes what a search looks for, by the rules of `encode_queries`; see there.

        An image without text and instruction gets the format's prompt for an image alone. Most models were trained with
        an instruction for queries and none, or another one, for documents.
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
        """Dot products of vectors (n, hidden) and (m, hidden), cosines if they have length 1: float32 (n, m).

        Args:
            a: A tensor, an array, or a list, tuple or column of vectors, which are read in their order.
            b: The same.

        Raises:
            InputError: What has no order (a set, a dictionary, a generator), or what are no vectors.
        """
        return as_vectors("a", a) @ as_vectors("b", b).T

    def add_lora(self, settings: LoraSettings | None = None) -> None:
        """Puts a fresh adapter on the backbone; only the adapter is trainable afterwards.

        Layers that are frozen (`freeze`) get none.

        Args:
            settings: None: the original's.

        Raises:
            InputError: a target that matches no layer, or frozen ones alone, a value out of range, or an adapter is
                there already.
        """
        if isinstance(self.backbone, PeftModel):
            raise InputError("the model has an adapter already; merge it first (merge_lora)")
        self.backbone = add_adapter(self.backbone, settings or LoraSettings())

    def merge_lora(self) -> None:
        """Adds the adapter to the weights and drops it; without an adapter nothing happens."""
        if isinstance(self.backbone, PeftModel):
            self.backbone = self.backbone.merge_and_unload()

    def freeze(self, vision_tower: bool = False, projector: bool = False) -> None:
        """Stops training parts of the model. `add_lora` then leaves them out.

        Args:
            vision_tower: What turns pixels into features.
            projector: What turns features into the decoder's image tokens.

        Raises:
            InputError: there is an adapter already, whose part there would be saved without being trained.
        """
        parts = [name for name, chosen in ((VISION_TOWER, vision_tower), (PROJECTOR, projector)) if chosen]
        if isinstance(self.backbone, PeftModel) and parts:
            raise InputError("freeze parts of the model before an adapter is put on it: frozen parts get none")
        self.base.freeze(*parts)

    def gradient_checkpointing_enable(self) -> None:
        """Recomputes every layer's activations in the backward pass instead of keeping them."""
        # transformers 5.23 renamed the method and warns of the old name; older versions have only that.
        enable = getattr(self.base, "activation_checkpointing_enable", None) or self.base.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        """Keeps all activations, as at first."""
        base = self.base
        (getattr(base, "activation_checkpointing_disable", None) or base.gradient_checkpointing_disable)()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `from_pretrained` reads: the whole model, or an adapter that names its base.

        Files appear under their final names only when all of them are complete. They replace those of a former save,
        whose weights are removed, more or fewer shards of them too.

        Raises:
            InputError: the folder holds the other kind: a whole model where an adapter is saved, or an adapter where a
                whole model is.
        """
        save_model(self.backbone, Path(folder), self.save_configuration)

    def save_configuration(self, folder: str | Path, with_base: bool = False) -> None:
        """Writes what `save_pretrained` writes but the weights; a checkpoint's weights complete it (export).

        Args:
            folder: where to.
            with_base: beside an adapter, write its base's configuration into a folder of its own, for an export.
        """
        folder = Path(folder)
        write_model_config(self.backbone, folder, with_base)
        self.processor.save_pretrained(folder)
        self.settings.write(folder)
