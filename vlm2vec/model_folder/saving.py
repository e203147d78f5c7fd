"""Saves a model's folder: files appear once all are complete, and replace those of an earlier save."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel

from vlm2vec.backbones.checkpoint import has_weights, remove_weights
from vlm2vec.backbones.interface import Backbone
from vlm2vec.errors import InputError
from vlm2vec.files import apply_umask
from vlm2vec.model_folder.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_CONFIG,
    write_adapter_config,
    write_adapter_weights,
)


def save_model(backbone: Backbone | PeftModel, folder: Path, write_configuration: Callable[[Path], None]) -> None:
    """Saves the whole model, or only its adapter if it has one.

    Args:
        backbone: The model whose weights are written.
        folder: Target folder; created if absent. All weights of an earlier save are removed, whatever their number of
            shards.
        write_configuration: Writes all other files into a folder.

    Raises:
        InputError: An adapter is saved where the folder holds a whole model, or a whole model where it holds an
            adapter.
    """
    is_adapter = isinstance(backbone, PeftModel)
    _refuse_other_kind(is_adapter, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        temporary = Path(name)
        if isinstance(backbone, PeftModel):
            write_adapter_weights(backbone, temporary)
        else:
            backbone.save_pretrained(temporary)
        write_configuration(temporary)
        apply_umask(temporary)
        _remove_former_weights(is_adapter, folder)
        for file in sorted(temporary.iterdir()):
            os.replace(file, folder / file.name)


def write_model_config(backbone: Backbone | PeftModel, folder: Path, with_base: bool) -> None:
    """Writes config.json, or an adapter's configuration; with `with_base` also its base's, into a separate folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(backbone, PeftModel):
        write_adapter_config(backbone, folder)
        if with_base:
            backbone.get_base_model().config.save_pretrained(str(folder / BASE_CONFIG))
    else:
        backbone.config.save_pretrained(str(folder))


def _refuse_other_kind(is_adapter: bool, folder: Path) -> None:
    if is_adapter:
        if has_weights(folder):
            raise InputError(f"{folder}: holds a whole model; save the adapter into a different folder")
    elif (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"{folder}: holds an adapter; save the whole model into a different folder")


def _remove_former_weights(is_adapter: bool, folder: Path) -> None:
    """Removes old weights: beside new ones, they could be the ones that are loaded."""
    if is_adapter:
        for name in ADAPTER_WEIGHTS:
            (folder / name).unlink(missing_ok=True)
    else:
        remove_weights(folder)
