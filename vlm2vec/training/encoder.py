"""A run's encoder: loaded, with what is trained of it, the same on every rank."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import transformers
from peft import PeftModel

from vlm2vec.backbones.checkpoint import CONFIG_FILE, resolve_folder
from vlm2vec.backbones.interface import Family
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.compiling import compile_layers
from vlm2vec.encoder import VLM2Vec
from vlm2vec.errors import InputError
from vlm2vec.model_folder.loading import choose_settings
from vlm2vec.model_folder.settings import STORED, ChangedSettingWarning, ModelSettings
from vlm2vec.training.flags.run import RunSettings
from vlm2vec.training.settings import EncoderSettings


def with_model_settings(settings: RunSettings) -> tuple[RunSettings, list[str]]:
    """The settings, with what the model was saved with where the flags say nothing.

    Returns:
        The settings, and a line for every flag that differs from what the model was saved with.

    Raises:
        InputError: The model's settings are damaged, or a flag is impossible.
    """
    folder = resolve_folder(settings.encoder.model_name)
    if not (folder / CONFIG_FILE).is_file():  # an adapter; `build_encoder` refuses it
        return settings, []
    family = family_of_folder(folder)
    used, changes = settings_in_use(settings.encoder, folder, family)
    return settings.with_model(used, family.backbone.lora_targets), changes


def settings_in_use(encoder: EncoderSettings, folder: Path, family: Family) -> tuple[ModelSettings, list[str]]:
    """The settings of the model in a folder, with a run's in their place; as `choose_settings`.

    Raises:
        InputError: The model's settings are damaged, or a flag is impossible.
    """
    given = {name: getattr(encoder, name) for name in ("max_len", "normalize", "prompt_format")}
    given = {name: value for name, value in given.items() if value is not None}
    return choose_settings(folder, None, {**given, **encoder.image_limits}, family, prefix="--")


def build_encoder(settings: EncoderSettings) -> VLM2Vec:
    """The encoder of a run, the same on every rank.

    Raises:
        InputError: The model cannot be loaded, is an adapter, nothing of it would be trained, or it has nothing to
            compile.
    """
    transformers.utils.logging.disable_progress_bar()  # a bar a rank would only tangle
    limits: dict[str, Any] = dict(settings.image_limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChangedSettingWarning)  # the run says it once, see `with_model_settings`
        encoder = VLM2Vec.from_pretrained(
            settings.model_name,
            max_len=STORED if settings.max_len is None else settings.max_len,
            # ZeRO copies its master weights from the bfloat16 ones: loading float32 would only cost host memory.
            dtype=settings.precision.frozen,
            device="cpu",  # the engine puts it, or its rank's part of it, on the GPU
            attn_implementation=settings.attn_implementation,
            normalize=settings.normalize,
            prompt_format=settings.prompt_format,
            **limits,
        )
    if isinstance(encoder.backbone, PeftModel):
        raise InputError(
            f"--model_name {settings.model_name}: is an adapter, and training starts from a whole model: merge it "
            "first (VLM2Vec.from_pretrained, merge_lora, save_pretrained; of a run of this program: python -m "
            "vlm2vec.export with --merge_lora)"
        )
    encoder = prepare_encoder(encoder, settings, settings.gradient_checkpointing)
    if settings.compile_layers and compile_layers(encoder) == 0:
        kind = encoder.base.config.model_type
        raise InputError(f"--compile_layers: no effect, no layer of a {kind} has compiled operators; leave it out")
    return encoder


def prepare_encoder(encoder: VLM2Vec, settings: EncoderSettings, gradient_checkpointing: bool) -> VLM2Vec:
    """Frozen parts, adapter, gradient checkpointing: makes an encoder the one that is trained.

    Raises:
        InputError: No adapter can be made as the settings ask for, see `VLM2Vec.add_lora`.
    """
    encoder.freeze(vision_tower=settings.freeze_vision_tower, projector=settings.freeze_projector)
    if settings.lora is not None:
        try:
            encoder.add_lora(settings.lora)
        except InputError as error:
            frozen = ", --freeze_vision_tower" if settings.freeze_vision_tower else ""
            raise InputError(f"--lora{frozen}: {error}") from error
    if gradient_checkpointing:
        encoder.gradient_checkpointing_enable()
    return encoder.train()
