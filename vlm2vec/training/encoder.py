"""Loads a run's encoder and prepares it for training: frozen parts, adapter, compiled layers."""

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
    """Completes the settings: where a flag is absent, the model's saved setting is used.

    Returns:
        The settings, and one line per flag that differs from the model's saved setting.

    Raises:
        InputError: The model's settings are damaged, or a flag's value is invalid for this model.
    """
    folder = resolve_folder(settings.encoder.model_name)
    if not (folder / CONFIG_FILE).is_file():  # an adapter; `build_encoder` refuses it
        return settings, []
    family = family_of_folder(folder)
    used, changes = settings_in_use(settings.encoder, folder, family)
    return settings.with_model(used, family.backbone.lora_targets), changes


def settings_in_use(encoder: EncoderSettings, folder: Path, family: Family) -> tuple[ModelSettings, list[str]]:
    """The saved settings of the model in a folder, overridden by a run's; see `choose_settings`.

    Raises:
        InputError: The model's settings are damaged, or a flag's value is invalid for this model.
    """
    given = {name: getattr(encoder, name) for name in ("max_len", "normalize", "prompt_format")}
    given = {name: value for name, value in given.items() if value is not None}
    return choose_settings(folder, None, {**given, **encoder.image_limits}, family, prefix="--")


def build_encoder(settings: EncoderSettings) -> VLM2Vec:
    """Loads the encoder of a run; identical on every rank.

    Raises:
        InputError: The model cannot be loaded, is an adapter, has nothing to train, or has nothing to compile.
    """
    transformers.utils.logging.disable_progress_bar()  # the bars of several ranks would interleave
    limits: dict[str, Any] = dict(settings.image_limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChangedSettingWarning)  # the run reports it once, see `with_model_settings`
        encoder = VLM2Vec.from_pretrained(
            settings.model_name,
            max_len=STORED if settings.max_len is None else settings.max_len,
            # ZeRO copies master weights from the bfloat16 weights: loading float32 would only cost host memory.
            dtype=settings.precision.frozen,
            device="cpu",  # the engine puts it, or its rank's part of it, on the GPU
            attn_implementation=settings.attn_implementation,
            normalize=settings.normalize,
            prompt_format=settings.prompt_format,
            **limits,
        )
    if isinstance(encoder.backbone, PeftModel):
        raise InputError(
            f"--model_name {settings.model_name}: is an adapter, and training starts from a whole model; merge it "
            "first (python -m vlm2vec.export with --merge_lora for a run of this program; otherwise "
            "VLM2Vec.from_pretrained, merge_lora, save_pretrained)"
        )
    encoder = prepare_encoder(encoder, settings, settings.gradient_checkpointing)
    if settings.compile_layers and compile_layers(encoder) == 0:
        kind = encoder.base.config.model_type
        raise InputError(f"--compile_layers: no effect, a {kind} model has no layers to compile; leave it out")
    return encoder


def prepare_encoder(encoder: VLM2Vec, settings: EncoderSettings, gradient_checkpointing: bool) -> VLM2Vec:
    """Prepares an encoder for training: freezes parts, adds the adapter, enables gradient checkpointing.

    Raises:
        InputError: The adapter's settings do not fit the model, see `VLM2Vec.add_lora`.
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
