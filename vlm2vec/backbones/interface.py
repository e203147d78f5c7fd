"""Interfaces of a model family, through which the rest of the library uses it.

Those of items and their processor are in `vlm2vec/backbones/items.py`; import all of them from here.
"""

from __future__ import annotations

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from vlm2vec.backbones.checkpoint import (
    Shape,
    TensorNames,
    check_tensors,
    checkpoint_shapes,
    renamed,
    resolve_folder,
)
from vlm2vec.backbones.items import CollatedItems, ItemProcessor, ProcessedItem
from vlm2vec.backbones.prompts import DEFAULT_MAX_LEN, PromptFormat, named_format
from vlm2vec.errors import InputError

__all__ = [
    "PROJECTOR",
    "VISION_TOWER",
    "Backbone",
    "CollatedItems",
    "Family",
    "ItemProcessor",
    "ProcessedItem",
]

# Parts that may be frozen, by their names in flags (`--freeze_vision_tower`, `--freeze_projector`).
VISION_TOWER, PROJECTOR = "vision_tower", "projector"

_Model = TypeVar("_Model", bound="Backbone")


# --- The model: from the arguments of its forward to hidden states ---


class Backbone(PreTrainedModel, ABC):
    """A model without its language-model head: from a chunk's tensors to hidden states.

    A family's model derives from this class first and from transformers' class second. Its `forward` takes the tensors
    of a collated chunk by name and returns the states after the final norm, (n, L, hidden) in the model's dtype.

    Attributes:
        tensor_names: Names of some tensors in published weight files.
        prefixes: Prefixes of module names with the prefixes in published files; all end with a dot, and none starts
            with a different one of its side. What an adapter adds to a name is kept.
        lora_targets: Linear layers that an adapter adapts by default, by the last part of their names.
        causal_class: Name in config.json of the model with its output head.
        fewest_depths: Fewest decoder and vision tower layers with which every part of the model runs, see `depths`.
        attends_across_units: Whether the vision tower attends across the vision units of an image, so that its cost
            grows with the square of their number.
    """

    tensor_names: ClassVar[TensorNames]
    prefixes: ClassVar[Mapping[str, str]] = {}
    supports_gradient_checkpointing = True  # layers derive from transformers' GradientCheckpointingLayer
    lora_targets: ClassVar[tuple[str, ...]]
    causal_class: ClassVar[str]
    fewest_depths: ClassVar[tuple[int, int]] = (1, 1)
    attends_across_units: ClassVar[bool] = False

    # Loading.

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "tensor_names"):  # otherwise transformers would report unused tensors at every load
            unused = [re.escape(cls.module_name(name)) for name in sorted(cls.tensor_names.unused)]
            cls._keys_to_ignore_on_load_unexpected = [f"^{name}$" for name in unused]

    @classmethod
    @abstractmethod
    def load_config(cls, folder: Path, found: Mapping[str, Shape]) -> PreTrainedConfig:
        """A folder's config.json, checked before anything is allocated from it.

        Args:
            folder: The checkpoint.
            found: Its tensors, whose width and number of layers must match the configuration; empty: not compared.

        Raises:
            InputError: The file is missing or damaged, or a value is impossible or does not match the weights.
        """

    @classmethod
    def tensor_shapes(cls, config: PreTrainedConfig) -> dict[str, Shape]:
        """Published names and shapes of a checkpoint's tensors, computed without allocating them."""
        with torch.device("meta"):
            state = cls(config).state_dict()
        return {cls.published_name(name): tuple(tensor.shape) for name, tensor in state.items()}

    @classmethod
    def check_folder(cls, folder: Path) -> tuple[PreTrainedConfig, dict[str, str]]:
        """Reads a folder's configuration and compares its weights with the model, by their headers.

        Returns:
            The configuration, and the renaming to load with, by patterns.

        Raises:
            InputError: Tensors are missing, unexpected or of a different shape; or see `load_config`.
        """
        in_files = checkpoint_shapes(folder)
        found = cls.tensor_names.published(in_files)
        config = cls.load_config(folder, found)
        renaming = check_tensors(folder, found, cls.tensor_shapes(config), cls.tensor_names)
        if found.keys() != in_files.keys():
            spellings = cls.tensor_names.spellings.items()
            renaming |= {f"^{re.escape(other)}": cls.module_name(published) for other, published in spellings}
        return config, renaming

    @classmethod
    def from_pretrained(cls: type[_Model], path: str | Path, **kwargs: Any) -> _Model:
        """Loads a checkpoint and checks that every tensor was loaded.

        Args:
            path: A folder (single file or shards, safetensors or `.bin` pickles, which are opened with
                `weights_only=True`) or the name of a Hugging Face repository.
            kwargs: Arguments of `transformers.PreTrainedModel.from_pretrained`: dtype (default: as stored),
                attn_implementation, device_map, ...

        Raises:
            InputError: Tensors are missing, unexpected (except for `tensor_names.unused`) or of a different shape, the
                configuration does not match the weights, or the attn_implementation is not available.
        """
        folder = resolve_folder(path)
        config, renaming = cls.check_folder(folder)
        renaming |= {f"^{re.escape(theirs)}": ours for ours, theirs in cls.prefixes.items()}
        try:
            model, info = super().from_pretrained(
                str(folder), config=config, key_mapping=renaming or None, output_loading_info=True, **kwargs
            )
        except (ImportError, ValueError) as error:
            attention, reason = kwargs.get("attn_implementation"), " ".join(str(error).split())
            if attention is None or not re.search("attention|attn", reason, re.IGNORECASE):
                raise
            raise InputError(
                f"attn_implementation {attention}: not available for a {config.model_type} on this machine "
                f"({reason[:200]})"
            ) from error
        if info["missing_keys"]:  # they would be random numbers
            raise InputError(f"{folder}: tensors were not loaded: {sorted(info['missing_keys'])[:3]}")
        model.freeze_unused()  # loading replaced the frozen parameters by new ones
        # Adapters store this as the name of their base; a folder's path must be absolute to be found from anywhere.
        name = os.path.abspath(path) if Path(path).is_dir() else str(path)
        model.config.name_or_path = model.name_or_path = name
        result: _Model = model
        return result

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Writes config.json and the weights under their published names.

        Args:
            folder: Folder to write to.
            kwargs: Arguments of `transformers.PreTrainedModel.save_pretrained`.
        """
        state = kwargs.pop("state_dict", None) or self.state_dict()
        published = {self.published_name(name): tensor for name, tensor in state.items()}
        # Otherwise transformers would revert the renaming of loading a second time.
        super().save_pretrained(str(folder), state_dict=published, save_original_format=False, **kwargs)

    # Names in files.

    @classmethod
    def published_name(cls, name: str) -> str:
        """Name of a parameter in published files, also in adapters' files."""
        return renamed(name, cls.prefixes)

    @classmethod
    def module_name(cls, name: str) -> str:
        """Name in this model of a tensor of published files; the inverse of `published_name`."""
        return renamed(name, {theirs: ours for ours, theirs in cls.prefixes.items()})

    # What is trained.

    @abstractmethod
    def unused_modules(self) -> Sequence[nn.Module]:
        """Modules of the checkpoint that no embedding depends on."""

    def freeze_unused(self) -> None:
        """Freezes what never runs, including its adapters: training would wait for gradients that never come."""
        for module in self.unused_modules():
            module.requires_grad_(False)

    @abstractmethod
    def freezable(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Parameters of each part that may be frozen, by `VISION_TOWER` and `PROJECTOR`."""

    def freeze(self, *parts: str) -> None:
        """Freezes parts of the model.

        Raises:
            InputError: The model has no such part.
        """
        known = self.freezable()
        for part in parts:
            if part not in known:
                raise InputError(f"{part}: a {self.config.model_type} has no such part; use {', '.join(known)}")
            for parameter in known[part]:
                parameter.requires_grad_(False)

    @property
    def trains_images_alone(self) -> bool:
        """Whether texts have no gradient path, because everything that is trained runs only for images.

        Then chunks without images always include their dummy image, see `ItemEncoderInputs`.
        """
        of_images = {id(parameter) for part in self.vision_modules() for parameter in part.parameters()}
        trained = [id(parameter) in of_images for parameter in self.parameters() if parameter.requires_grad]
        return bool(trained) and all(trained)

    def original_arguments(self) -> Mapping[str, Any]:
        """Arguments that make `forward` compute as the original code, where vectors may depend on the whole batch."""
        return {}

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Read by PEFT; overrides transformers' property, which warns of its deprecation since version 5.23."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    # Facts for the rest of the library.

    @property
    def token_embeddings(self) -> torch.Tensor:
        """Weights of the token embedding; they determine the device of inputs and the dtype of the base."""
        weight: torch.Tensor = self.get_input_embeddings().weight
        return weight

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that have an embedding."""
        return int(self.config.get_text_config().vocab_size)

    @abstractmethod
    def vision_modules(self) -> Sequence[nn.Module]:
        """All modules that run only for images, including unused ones."""

    @abstractmethod
    def check_processor(self, processor: Any, source: Path) -> None:
        """Compares the family's processor with this model.

        Args:
            processor: Builds the model's inputs.
            source: Its folder, for messages.

        Raises:
            InputError: It makes images that the model does not accept.
        """

    @abstractmethod
    def install_compiled(self) -> None:
        """Changes the classes of layers to ones with compiled elementwise operators (vlm2vec/elementwise.py).

        Each of these classes has an attribute `backend`, which `compile_layers` sets.
        """

    # Repeated layers: estimates measure few of them and extrapolate to the real number.

    @classmethod
    @abstractmethod
    def depths(cls, config: PreTrainedConfig) -> tuple[int, int]:
        """Numbers of layers of the decoder and the vision tower.

        All layers of a kind must be alike. If they are not (for example every eighth layer of a tower differs), count
        groups of layers that are alike.
        """

    @classmethod
    @abstractmethod
    def with_depths(cls, config: PreTrainedConfig, decoder: int, vision: int) -> PreTrainedConfig:
        """The same configuration with different numbers of layers, counted as in `depths`; at least `fewest_depths`."""


# --- The family: what ties the model and its processor together ---


@dataclass(frozen=True)
class Family:
    """The classes of a model family, and the facts that its files and cards need.

    Attributes:
        model_type: The family's name, `model_type` in config.json.
        backbone: Class of the model. Its `config_class` is the family's configuration.
        processor: Class of the processor, which builds the model's inputs.
        prompt_formats: Built-in prompt formats by name.
        recognise_format: Returns the name of the prompt format of a folder without vlm2vec_config.json, or None if it
            is unknown; raises `InputError` for damaged files.
        max_lens: Tokens to which the code of a built-in format truncates texts, by the format's name; None: no limit.
            Absent formats have `DEFAULT_MAX_LEN`.
        image_limits: Names of the image limits that the family supports.
        stored_limits: Returns the limits in a folder's processor files, by name.
        vision_unit_name: Name of vision units, in the plural.
        published_configs: Names of published models, each with a folder that holds its config.json (and other files
            that estimates read), for plans without the model's folder.
    """

    model_type: str
    backbone: type[Backbone]
    processor: type[ItemProcessor]
    prompt_formats: Mapping[str, PromptFormat]
    recognise_format: Callable[[Path], str | None]
    image_limits: tuple[str, ...]
    stored_limits: Callable[[Path], Mapping[str, int]]
    vision_unit_name: str
    published_configs: Mapping[str, Path] = field(default_factory=dict)
    max_lens: Mapping[str, int | None] = field(default_factory=dict)

    def prompt_format(self, wanted: str | PromptFormat) -> PromptFormat:
        """Looks up or checks a prompt format.

        Args:
            wanted: A prompt format, or the name of a built-in one.

        Raises:
            InputError: There is no such name, or the family does not support the format.
        """
        if not isinstance(wanted, PromptFormat):
            return named_format(self.prompt_formats, wanted)
        self.processor.check_format(wanted)
        return wanted

    def folder_format(self, folder: Path) -> PromptFormat:
        """Prompt format that a folder's model was trained with, for a folder without vlm2vec_config.json.

        Raises:
            InputError: It is unknown; the message asks for it.
        """
        return named_format(self.prompt_formats, self.recognise_format(folder), folder)

    def known_format(self, folder: Path) -> PromptFormat | None:
        """See `folder_format`; returns None if it is unknown.

        Raises:
            InputError: Files are damaged.
        """
        name = self.recognise_format(folder)
        return None if name is None else named_format(self.prompt_formats, name, folder)

    def default_max_len(self, prompt_format: PromptFormat | None) -> int | None:
        """Default number of tokens to which texts are truncated; None: no limit.

        Args:
            prompt_format: The prompt format in use; None if unknown. A format that differs from a built-in one only in
                name and instruction has that one's default.
        """
        for name, max_len in self.max_lens.items():
            if prompt_format is not None and self.prompt_formats[name].is_same(
                prompt_format, whatever_instruction=True
            ):
                return max_len
        return DEFAULT_MAX_LEN

    @property
    def model_import(self) -> str:
        """Python line that imports the model, for a model card."""
        module, name = self.backbone.__module__, self.backbone.__name__
        package = module.rpartition(".")[0]
        is_exported = getattr(sys.modules.get(package), name, None) is self.backbone
        return f"from {package if is_exported else module} import {name}"
