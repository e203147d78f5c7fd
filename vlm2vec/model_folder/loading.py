"""What loading an encoder checks: its base's weights, its processor, and whether the two fit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from vlm2vec.backbones.checkpoint import resolve_folder
from vlm2vec.backbones.interface import Backbone
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
    """Where a model's files are; a path to an adapter's folder means that adapter on its base.

    Args:
        path: A folder or a Hugging Face repository.
        adapter: The same, of an adapter on top of `path`; None: without one, unless `path` is one.

    Returns:
        What names the base, the base's folder, and the adapter's folder.

    Raises:
        InputError: There is no such folder, or an adapter does not name its base.
    """
    folder = resolve_folder(path)
    if adapter is None and is_adapter_folder(folder):
        adapter, path = folder, read_base_name(read_json(folder / ADAPTER_CONFIG), folder)
        folder = resolve_folder(path)
    return path, folder, resolve_folder(adapter) if adapter is not None else None


def fingerprint_of_base(base: Path, adapter: Path | None, allow_other: bool) -> str:
    """The fingerprint of the weights in `base`, for an adapter held against those that it was trained on.

    Raises:
        InputError: An adapter's base had other weights, and that is not allowed.
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


def check_fit(processor: Any, backbone: Backbone, source: Path) -> None:
    """Compares a processor with the model that it makes inputs for.

    Args:
        processor: makes the inputs.
        backbone: the model.
        source: the processor's folder, for messages.

    Raises:
        InputError: images of another size, or a token that the model has no embedding for.
    """
    backbone.check_processor(processor, source)
    largest, known = processor.largest_token_id, backbone.vocab_size
    if largest >= known:
        raise InputError(f"{source}: the tokenizer's files have token {largest}, the model has embeddings for {known}")


def load_processor(base: Path, adapter: Path | None, num_crops: int | None = None) -> Any:
    """The processor of a model: the adapter's where it brings one, else its base's.

    Args:
        base, adapter: folders.
        num_crops: local crops an image; None: as the model was trained with, else what its processor says.

    Raises:
        InputError: see the processor's `from_pretrained`; or two files of a folder contradict each other.
    """
    has_own = adapter is not None and (adapter / "tokenizer.json").is_file()
    folder = adapter if adapter is not None and has_own else base
    family = family_of_folder(base)
    if num_crops is None:
        num_crops = ModelSettings.read(adapter, base).num_crops
        trained, written = ModelSettings.read(folder).num_crops, family.stored_num_crops(folder)
        if None not in (trained, written) and trained != written:
            raise InputError(
                f"{folder}: preprocessor_config.json says num_crops {written}, {SETTINGS_FILE} says {trained}; make "
                "them agree, or pass num_crops"
            )
    return family.processor.from_pretrained(folder, num_crops)
