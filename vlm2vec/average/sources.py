"""Reads the folders to average and checks that they differ in nothing but their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from vlm2vec.backbones.checkpoint import resolve_folder
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import read_json, shorten
from vlm2vec.model_folder.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter_folder
from vlm2vec.model_folder.adapter_schema import check_adapter_config
from vlm2vec.model_folder.settings import SETTINGS_FILE, ModelSettings, is_same, shown
from vlm2vec.model_folder.weights import LazyTensor, file_weights, folder_weights

_BASE_NAME = "base_model_name_or_path"
# Keys of adapter_config.json that only affect training, or record where an adapter comes from. All others decide what
# it computes.
_NOTES = {
    *(_BASE_NAME, "revision", "peft_version", "auto_mapping", "task_type"),
    *("inference_mode", "init_lora_weights", "lora_dropout"),
}
# The same for config.json.
_CONFIG_NOTES = {
    *("_name_or_path", "transformers_version", "architectures", "auto_map", "use_cache"),
    *("dtype", "torch_dtype"),  # the tensors' dtypes are compared instead
}


@dataclass(frozen=True)
class Source:
    """One folder to average.

    Attributes:
        name: The folder or Hugging Face repository as it was given.
        folder: Local folder with its files.
        is_adapter: Whether it is an adapter, not a whole model.
        weights: Tensors by name.
        dtypes: Dtypes by tensor name.
        config: config.json or adapter_config.json, without the keys that do not change what it computes.
        settings: The folder's settings: prompt format, pooling and so on.
        base: The base model that an adapter names; None for a whole model.
    """

    name: str
    folder: Path
    is_adapter: bool
    weights: Mapping[str, LazyTensor]
    dtypes: Mapping[str, torch.dtype]
    config: Mapping[str, Any]
    settings: ModelSettings
    base: str | None

    @classmethod
    def read(cls, name: str) -> Source:
        """Reads a folder's configuration and the headers of its weight files.

        Raises:
            InputError: It is no adapter or model, or a file is damaged; the message names the file.
        """
        folder = resolve_folder(name)
        is_adapter = is_adapter_folder(folder)
        if is_adapter:
            weights, config, base = _read_adapter(folder)
        else:
            family = family_of_folder(folder)
            config, base = family.backbone.check_folder(folder)[0].to_dict(), None
            weights = folder_weights(folder)
            config = {key: value for key, value in config.items() if key not in _CONFIG_NOTES}
        return cls(
            *(name, folder, is_adapter, weights),
            dtypes={key: tensor.read().dtype for key, tensor in weights.items()},  # views of the mapped file
            config=config,
            settings=ModelSettings.read(folder),
            base=base,
        )


def compare(sources: Sequence[Source], allow_other_base: bool) -> None:
    """Compares every source with the first.

    Raises:
        InputError: They differ in kind, base, configuration, settings or vocabulary, or their tensors differ in name,
            shape or dtype; the message names the folder and the first difference.
    """
    first = sources[0]
    for other in sources[1:]:
        if other.folder.resolve() == first.folder.resolve():
            raise InputError(f"{other.name}: given twice; to count it more than the others, give it a larger weight")
        if other.is_adapter != first.is_adapter:
            adapter, model = (first, other) if first.is_adapter else (other, first)
            raise InputError(
                f"{adapter.name} is an adapter, {model.name} a whole model; merge the adapter first: "
                "python -m vlm2vec.export --merge_lora"
            )
        _compare_values(first, other)
        _compare_tensors(first, other)
        if not allow_other_base:
            _compare_bases(first, other)
        _compare_vocabularies(first, other)


def _read_adapter(folder: Path) -> tuple[dict[str, LazyTensor], dict[str, Any], str]:
    file = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder}: holds no adapter weights ({' or '.join(ADAPTER_WEIGHTS)})")
    weights = file_weights(file)
    check_adapter_config(folder / ADAPTER_CONFIG, {name: tensor.shape for name, tensor in weights.items()})
    written = read_json(folder / ADAPTER_CONFIG)
    base = str(written.get(_BASE_NAME) or "")
    if base and not Path(base).is_dir() and (folder / base).is_dir():
        base = str(folder / base)
    # A key that a file leaves out has PEFT's default; other files may write the default explicitly.
    config = {key: value for key, value in (LoraConfig().to_dict() | written).items() if key not in _NOTES}
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    return weights, config, base


def _compare_values(first: Source, other: Source) -> None:
    file = ADAPTER_CONFIG if first.is_adapter else "config.json"
    for key in sorted(first.config.keys() | other.config.keys()):
        mine, theirs = first.config.get(key), other.config.get(key)
        if mine != theirs and (mine or theirs):
            _refuse(first, other, f"{file}: {key}", shorten(mine), shorten(theirs))
    for key in ModelSettings.model_fields:
        if key != "base_fingerprint":
            mine, theirs = getattr(first.settings, key), getattr(other.settings, key)
            if mine != theirs and not is_same(key, mine, theirs):
                _refuse(first, other, f"{SETTINGS_FILE}: {key}", shown(mine, theirs), shown(theirs, mine))


def _compare_tensors(first: Source, other: Source) -> None:
    for key in sorted(first.weights.keys() | other.weights.keys()):
        if key not in first.weights or key not in other.weights:
            having, lacking = (first, other) if key in first.weights else (other, first)
            raise InputError(f"{lacking.name}: cannot be averaged with {having.name}: it has no tensor {key}")
        mine, theirs = first.weights[key].shape, other.weights[key].shape
        if mine != theirs:
            _refuse(first, other, f"the shape of {key}", list(mine), list(theirs))
        if first.dtypes[key] != other.dtypes[key]:
            remedy = "" if first.is_adapter else "; export them with the same --dtype"
            _refuse(first, other, f"the dtype of {key}", first.dtypes[key], other.dtypes[key], remedy)


def _compare_bases(first: Source, other: Source) -> None:
    mine, theirs = first.settings.base_fingerprint, other.settings.base_fingerprint
    remedy = "; if that is what you want, pass --allow_other_base"
    if mine is not None and theirs is not None:
        if mine != theirs:
            _refuse(first, other, "the fingerprint of the base weights", mine[:8], theirs[:8], remedy)
    elif first.base != other.base:
        _refuse(first, other, f"{ADAPTER_CONFIG}: {_BASE_NAME}", first.base, other.base, remedy)


def _compare_vocabularies(first: Source, other: Source) -> None:
    """Compares vocabularies where both have a tokenizer, by content: programs write the same one in different bytes."""
    mine, theirs = first.folder / "tokenizer.json", other.folder / "tokenizer.json"
    if not mine.is_file() or not theirs.is_file() or mine.read_bytes() == theirs.read_bytes():
        return
    for key in ("model", "added_tokens"):
        if read_json(mine).get(key) != read_json(theirs).get(key):
            raise InputError(f"{other.name}: cannot be averaged with {first.name}: {key} of tokenizer.json differs")


def _refuse(first: Source, other: Source, what: str, mine: object, theirs: object, remedy: str = "") -> None:
    raise InputError(
        f"{other.name}: cannot be averaged with {first.name}: {what} is {theirs} here, {mine} there{remedy}"
    )
