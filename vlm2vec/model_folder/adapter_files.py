"""Files of an adapter: writes a configuration that old versions of PEFT read too, and checks what it loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedConfig

from vlm2vec.backbones.checkpoint import Shape, has_weights
from vlm2vec.backbones.interface import Backbone
from vlm2vec.backbones.registry import family_of_config
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import write_json
from vlm2vec.model_folder.settings import ModelSettings
from vlm2vec.model_folder.weights import weights_fingerprint

ADAPTER_CONFIG = "adapter_config.json"
WRITTEN_WEIGHTS = "adapter_model.safetensors"
ADAPTER_WEIGHTS = (WRITTEN_WEIGHTS, "adapter_model.bin")
# Folder with the base's config.json in a checkpoint, against which an export checks the adapter even without the base.
BASE_CONFIG = "base"
# Keys that PEFT 0.11.1 knows, which the original pins; it refuses a file with any other key.
# https://github.com/huggingface/peft/blob/v0.11.1/src/peft/tuners/lora/config.py
PEFT_0_11_KEYS = frozenset(
    {
        *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
        *("r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora"),
        *("modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
        *("alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "use_dora", "layer_replication"),
    }
)


# Prefix that PEFT adds to the names of the model that it wraps.
IN_PEFT = "base_model.model."

_Tensor = TypeVar("_Tensor")


class OtherBaseError(InputError):
    """An adapter was trained on a different base model than the given one."""


def write_adapter_config(adapted: PeftModel, folder: Path) -> None:
    """Writes adapter_config.json, which names the base model: a folder by its absolute path, or a repository.

    Keys that PEFT 0.11.1 does not know are left out if they have their default. The same configuration gives the same
    bytes, whatever the order of a set.

    Args:
        adapted: The model with the adapter.
        folder: Folder to write to.
    """
    config = adapted.peft_config["default"]
    defaults = type(config)().to_dict()
    content = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
        if name in PEFT_0_11_KEYS or (value != defaults.get(name) and name != "peft_version")
    }
    base = adapted.get_base_model()
    if isinstance(content["target_modules"], list):  # may hold full names, if some layers of a target are frozen
        content["target_modules"] = sorted(base.published_name(name) for name in content["target_modules"])
    content |= {"inference_mode": True, "base_model_name_or_path": base.name_or_path}
    write_json(folder / ADAPTER_CONFIG, dict(sorted(content.items())))


def write_adapter_weights(adapted: PeftModel, folder: Path) -> None:
    """Writes the adapter's weights; PEFT's save would overwrite the folder's README.md with a model card."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _published_state(adapted).items()}
    save_file(tensors, folder / WRITTEN_WEIGHTS, metadata={"format": "pt"})


def read_adapter_config(folder: Path, backbone: Backbone | type[Backbone]) -> LoraConfig:
    """Reads adapter_config.json with PEFT, and converts layer names to the model's.

    Raises:
        InputError: The file is missing, damaged, or of a different kind of adapter.
    """
    file = folder / ADAPTER_CONFIG
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # PEFT raises the errors of its dataclasses and of json
        raise InputError(f"{file}: not a usable adapter ({' '.join(str(error).split())})") from error
    if not isinstance(config, LoraConfig):
        raise InputError(f"{file}: not a usable adapter (its peft_type is {config.peft_type}; only LORA is supported)")
    if isinstance(config.target_modules, set):
        spelling = backbone.tensor_names.published_spelling
        config.target_modules = {backbone.module_name(spelling(name)) for name in config.target_modules}
    return config


def read_base_name(config: dict[str, Any], folder: Path) -> str:
    """Path or name of the adapter's base model: as written, or relative to the adapter's folder.

    Raises:
        InputError: adapter_config.json names no base model, or a path that does not exist.
    """
    base = config.get("base_model_name_or_path")
    if not base:
        raise InputError(f"{folder / ADAPTER_CONFIG}: names no base model; pass the base as path and this as adapter")
    beside = folder / str(base)
    if not Path(base).is_dir() and beside.is_dir():
        return str(beside)
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise InputError(
            f"{folder / ADAPTER_CONFIG}: its base model {base} does not exist; pass the base as path and this as "
            "adapter"
        )
    return str(base)


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model.

    Raises:
        InputError: It holds both, so that it is ambiguous.
    """
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if is_adapter and has_weights(folder):
        raise InputError(
            f"{folder}: holds an adapter and a whole model; for the adapter, pass its base as path and this folder as "
            f"adapter; for the model, move {ADAPTER_CONFIG} and the adapter's weights away"
        )
    return is_adapter


def check_base(base: Path, adapter: Path) -> str:
    """Checks that the adapter was trained on this base, if the adapter records its base; returns the fingerprint.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter, with its `vlm2vec_config.json`.

    Raises:
        OtherBaseError: The adapter was trained on different weights.
        InputError: The base's weights cannot be read.
    """
    found, trained = weights_fingerprint(base), ModelSettings.read(adapter).base_fingerprint
    if trained is not None and trained != found:
        raise OtherBaseError(
            f"{adapter}: was trained on a different base model than {base} (weights {trained[:8]}, not {found[:8]})"
        )
    return found


def adapter_shapes(adapted: PeftModel) -> dict[str, Shape]:
    """Names and shapes that an adapter's weight file must have for this model."""
    return {name: tuple(tensor.shape) for name, tensor in _published_state(adapted).items()}


def published_adapter_name(name: str, backbone: Backbone | type[Backbone]) -> str:
    """Name in an adapter's file of a tensor that PEFT saves for this model."""
    return IN_PEFT + backbone.published_name(name.removeprefix(IN_PEFT))


def published_adapter(tensors: Mapping[str, _Tensor], backbone: Backbone) -> dict[str, _Tensor]:
    """An adapter's tensors by their published names, also if its file uses other prefixes."""
    spelling = backbone.tensor_names.published_spelling
    return {IN_PEFT + spelling(name.removeprefix(IN_PEFT)): tensor for name, tensor in tensors.items()}


def module_adapter_name(name: str, backbone: Backbone | type[Backbone]) -> str:
    """Name in PEFT of a tensor of an adapter's file; the inverse of `published_adapter_name`."""
    return IN_PEFT + backbone.module_name(name.removeprefix(IN_PEFT))


def _published_state(adapted: PeftModel) -> dict[str, torch.Tensor]:
    # Embeddings are never adapted. To find that out, PEFT would request the base's vocabulary from the Hugging Face
    # hub.
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {published_adapter_name(name, adapted.get_base_model()): tensor for name, tensor in state.items()}


def empty_adapter(config: PreTrainedConfig, folder: Path) -> PeftModel:
    """A base model with the folder's adapter on the meta device, to see which layers are adapted and how.

    Raises:
        InputError: See `read_adapter_config`; or the adapter does not fit this base.
    """
    backbone = family_of_config(config).backbone
    settings = read_adapter_config(folder, backbone)
    settings.base_model_name_or_path = None  # this base has no name, and PEFT would warn of the difference
    try:
        with torch.device("meta"):
            return get_peft_model(backbone(config), settings)
    except ValueError as error:
        raise InputError(f"{folder / ADAPTER_CONFIG}: not a usable adapter ({' '.join(str(error).split())})") from error


def check_adapter(file: Path, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compares an adapter's tensors with the expected ones.

    Raises:
        InputError: Names or shapes differ.
    """
    known = expected.keys() | found.keys()
    odd = sorted(name for name in known if expected.get(name) != found.get(name))
    if odd:
        counts = {
            "missing": len(expected.keys() - found.keys()),
            "unknown to the model": len(found.keys() - expected.keys()),
        }
        counts["of a different shape"] = len(odd) - sum(counts.values())
        kinds = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
        raise InputError(
            f"{file}: the adapter does not fit the model: {len(odd)} of {len(known)} tensors differ ({kinds}), first "
            f"{odd[0]} (file {found.get(odd[0])}, model {expected.get(odd[0])})"
        )
