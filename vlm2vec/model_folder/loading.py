"""Loads what an encoder consists of (base, adapter, settings, processor) and checks that the parts fit together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm2vec.backbones.checkpoint import resolve_folder
from vlm2vec.backbones.image_limits import LIMITS, refuse_limits
from vlm2vec.backbones.interface import Backbone, Family, ItemProcessor
from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import read_json
from vlm2vec.model_folder.adapter_files import (
    ADAPTER_CONFIG,
    OtherBaseError,
    check_base,
    is_adapter_folder,
    read_base_name,
)
from vlm2vec.model_folder.settings import SETTINGS_FILE, ChangedSettingWarning, ModelSettings
from vlm2vec.model_folder.weights import weights_fingerprint


def find_folders(path: str | Path, adapter: str | Path | None) -> tuple[str | Path, Path, Path | None]:
    """Finds a model's files; a path to an adapter's folder stands for that adapter on its base.

    Args:
        path: A folder or a Hugging Face repository.
        adapter: Folder or repository of an adapter on top of `path`; None: no adapter, unless `path` is one.

    Returns:
        The base's name (path or repository), the base's folder, and the adapter's folder.

    Raises:
        InputError: A folder does not exist, or an adapter does not name its base.
    """
    folder = resolve_folder(path)
    if adapter is None and is_adapter_folder(folder):
        adapter = folder
        path, folder = find_base(folder)
    return path, folder, resolve_folder(adapter) if adapter is not None else None


def find_base(adapter: Path) -> tuple[str, Path]:
    """Finds the base that an adapter's configuration names: returns its name and its folder.

    Raises:
        InputError: The configuration names no base, or neither folder nor repository of that name exists.
    """
    name = read_base_name(read_json(adapter / ADAPTER_CONFIG), adapter)
    try:
        return name, resolve_folder(name)
    except InputError as error:
        raise InputError(
            f"{adapter / ADAPTER_CONFIG}: its base model was not found ({error}); pass the base as path and this as "
            "adapter"
        ) from error


def fingerprint_of_base(base: Path, adapter: Path | None, allow_other: bool) -> str:
    """The fingerprint of the weights in `base`; checks that an adapter was trained on these weights.

    Raises:
        InputError: The adapter was trained on different weights, and `allow_other` is false.
    """
    if adapter is None:
        return weights_fingerprint(base)
    try:
        return check_base(base, adapter)
    except OtherBaseError as error:
        if not allow_other:
            raise InputError(f"{error}; load it on that base, or pass allow_other_base=True") from error
        warnings.warn(str(error), ChangedSettingWarning, stacklevel=4)
        return weights_fingerprint(base)


def check_fit(processor: ItemProcessor, backbone: Backbone, source: Path) -> None:
    """Checks that a processor fits the model that it makes inputs for.

    Args:
        processor: Makes the inputs.
        backbone: The model.
        source: The processor's folder, for messages.

    Raises:
        InputError: The processor makes images of a different size, or a token that the model has no embedding for.
    """
    backbone.check_processor(processor, source)
    largest, known = processor.largest_token_id, backbone.vocab_size
    if largest >= known:
        raise InputError(
            f"{source}: the tokenizer's files have token {largest}, but the model has embeddings for {known} tokens"
        )


def choose_settings(
    base: Path, adapter: Path | None, given: Mapping[str, Any], family: Family, prefix: str = ""
) -> tuple[ModelSettings, list[str]]:
    """The settings of a model: those that it was saved with, overridden by explicit ones.

    Args:
        base, adapter: Folders of the model.
        given: Explicit settings by name; a prompt format may be the name of a built-in one.
        family: Family of the base.
        prefix: Precedes a setting's name in messages: "--" in a command.

    Returns:
        The settings to use, and a line for each that differs from what the model was saved with. If neither gives
        `max_len`, it is the prompt format's.

    Raises:
        InputError: A file is damaged, a value is impossible, or the family does not support a limit or the format.
    """
    refuse_limits([name for name in given if name in LIMITS], family.image_limits, family.model_type, prefix)
    stored = stored_settings(base, adapter, family)
    if "prompt_format" in given:
        try:
            given = {**given, "prompt_format": family.prompt_format(given["prompt_format"])}
        except InputError as error:
            raise InputError(f"{prefix}prompt_format: {error}") from error
    used, lines = stored.with_arguments(**given)
    if "max_len" not in used.stored:
        prompt_format = used.prompt_format or family.known_format(adapter or base)
        used = used.model_copy(update={"max_len": family.default_max_len(prompt_format)})
    return used, lines


def stored_settings(base: Path, adapter: Path | None, family: Family) -> ModelSettings:
    """The settings that a model was saved with; a missing prompt format is recognised by the family where possible.

    Raises:
        InputError: A file is damaged, or the family does not support a limit or the format.
    """
    source = next((each for each in (adapter, base) if each is not None and (each / SETTINGS_FILE).is_file()), None)
    if source is None:
        return ModelSettings()
    settings = ModelSettings.read(source)
    try:
        refuse_limits(settings.image_limits, family.image_limits, family.model_type)
        recognised = settings.prompt_format or family.recognise_format(source)
        prompt_format = recognised and family.prompt_format(recognised)
    except InputError as error:
        raise InputError(f"{source / SETTINGS_FILE}: {error}") from error
    return settings.model_copy(update={"prompt_format": prompt_format})


def load_processor(
    base: Path,
    adapter: Path | None,
    prompt_format: PromptFormat | None = None,
    image_limits: Mapping[str, int] | None = None,
) -> ItemProcessor:
    """The processor of a model: the adapter's if its folder has one, else its base's.

    Args:
        base, adapter: Folders of the model.
        prompt_format: None: the one that the model was trained with, if a file or the family
            (`Family.folder_format`) tells it.
        image_limits: Limits by name; others are those that the model was trained with, else those of its
            processor's file.

    Raises:
        InputError: See the processor's `from_pretrained`; or two files of a folder contradict each other.
    """
    has_own = adapter is not None and (adapter / "tokenizer.json").is_file()
    folder = adapter if adapter is not None and has_own else base
    family = family_of_folder(base)
    settings = stored_settings(base, adapter, family)
    given = image_limits or {}
    trained, written = ModelSettings.read(folder).image_limits, family.stored_limits(folder)
    for name in family.image_limits:
        if name not in given and name in trained and name in written and trained[name] != written[name]:
            raise InputError(
                f"{folder}: preprocessor_config.json says {name} {written[name]}, {SETTINGS_FILE} says "
                f"{trained[name]}; make them agree, or pass {name}"
            )
    limits = {**settings.image_limits, **given}
    prompt_format = prompt_format or settings.prompt_format or family.folder_format(adapter or base)
    return family.processor.from_pretrained(folder, prompt_format, **limits)
