"""What a model family brings: the interfaces that the rest of the library knows it by.

Those of items and their processor are in `vlm2vec/backbones/items.py`; all of them are imported from here.
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

# Parts that may be frozen, as the flags call them (`--freeze_vision_tower`, `--freeze_projector`).
VISION_TOWER, PROJECTOR = "vision_tower", "projector"

_Model = TypeVar("_Model", bound="Backbone")


# --- The model: from the arguments of its forward to hidden states ---


class Backbone(PreTrainedModel, ABC):
    """A model without its language-model head: from a chunk's tensors to hidden states.

    A family's model derives from this class first and from transformers' second. Its `forward` takes the tensors of a
    collated chunk by name and returns the states after the final norm, (n, L, hidden) in the model's dtype.

    Attributes:
        tensor_names: What published weight files call some tensors.
        prefixes: Beginnings of module names that published files write otherwise, with what they write; both sides end
            with a dot, and neither begins with another of its side. What an adapter adds to a name is kept.
        lora_targets: Linear layers that an adapter goes on by default, by the last part of their names.
        causal_class: What config.json calls the model with its output head.
        fewest_depths: Layers of the decoder and of the vision tower with which every part of the model still runs, see
            `depths`.
        attends_across_units: Whether the vision tower's attention joins the vision units of an image, so that its cost
            grows with their square.
    """

    tensor_names: ClassVar[TensorNames]
    prefixes: ClassVar[Mapping[str, str]] = {}
    supports_gradient_checkpointing = True  # by layers that are transformers' GradientCheckpointingLayer
    lora_targets: ClassVar[tuple[str, ...]]
    causal_class: ClassVar[str]
    fewest_depths: ClassVar[tuple[int, int]] = (1, 1)
    attends_across_units: ClassVar[bool] = False

    # Loading.

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "tensor_names"):  # transformers would report them as a mistake each time
            unused = [re.escape(cls.module_name(name)) for name in sorted(cls.tensor_names.unused)]
            cls._keys_to_ignore_on_load_unexpected = [f"^{name}$" for name in unused]

    @classmethod
    @abstractmethod
    def load_config(cls, folder: Path, found: Mapping[str, Shape]) -> PreTrainedConfig:
        """A folder's config.json, checked before anything is allocated from it.

        Args:
            folder: The checkpoint.
            found: Its tensors, whose width and number of layers must be the configuration's; empty: not compared.

        Raises:
            InputError: Missing, damaged, or a value that is impossible or not the weights'.
        """

    @classmethod
    def tensor_shapes(cls, config: PreTrainedConfig) -> dict[str, Shape]:
        """Published names and shapes of a checkpoint's tensors, found without allocating them."""
        with torch.device("meta"):
            state = cls(config).state_dict()
        return {cls.published_name(name): tuple(tensor.shape) for name, tensor in state.items()}

    @classmethod
    def check_folder(cls, folder: Path) -> tuple[PreTrainedConfig, dict[str, str]]:
        """A folder's configuration, if its weights are the model's; headers alone are read.

        Returns:
            The configuration, and the renaming to load with, by patterns.

        Raises:
            InputError: Missing or unexpected tensors, other shapes, or see `load_config`.
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
        """Loads a checkpoint and makes sure that every tensor found its place.

        Args:
            path: a folder (single file or shards, safetensors or `.bin` pickles, which are opened with
                `weights_only=True`) or the name of a Hugging Face repository.
            kwargs: as for `transformers.PreTrainedModel.from_pretrained`: dtype (default: as stored),
                attn_implementation, device_map, ...

        Raises:
            InputError: missing or unexpected tensors (only those of `tensor_names.unused` may be left over), other
                shapes, a configuration that does not fit the weights, or an attn_implementation that is not to be had.
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
                f"attn_implementation {attention}: not for a {config.model_type} on this machine ({reason[:200]})"
            ) from error
        if info["missing_keys"]:  # would be random numbers
            raise InputError(f"{folder}: tensors were not loaded: {sorted(info['missing_keys'])[:3]}")
        model.freeze_unused()  # loading put new parameters in the place of the frozen ones
        # An adapter names its base by this: a folder must be found from everywhere.
        name = os.path.abspath(path) if Path(path).is_dir() else str(path)
        model.config.name_or_path = model.name_or_path = name
        result: _Model = model
        return result

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Writes config.json and the weights under their published names.

        Args:
            folder: Where to.
            kwargs: As for `transformers.PreTrainedModel.save_pretrained`.
        """
        state = kwargs.pop("state_dict", None) or self.state_dict()
        published = {self.published_name(name): tensor for name, tensor in state.items()}
        # transformers would undo the renaming of loading once more.
        super().save_pretrained(str(folder), state_dict=published, save_original_format=False, **kwargs)

    # Names in files.

    @classmethod
    def published_name(cls, name: str) -> str:
        """What published files, adapters' too, call a parameter of this model."""
        return renamed(name, cls.prefixes)

    @classmethod
    def module_name(cls, name: str) -> str:
        """What this model calls a tensor of published files: the inverse of `published_name`."""
        return renamed(name, {theirs: ours for ours, theirs in cls.prefixes.items()})

    # What is trained.

    @abstractmethod
    def unused_modules(self) -> Sequence[nn.Module]:
        """Parts of the checkpoint that no embedding depends on."""

    def freeze_unused(self) -> None:
        """Stops training what never runs, adapters on it included: it would wait for gradients that never come."""
        for module in self.unused_modules():
            module.requires_grad_(False)

    @abstractmethod
    def freezable(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The parameters of each part that may be frozen, by `VISION_TOWER` and `PROJECTOR`."""

    def freeze(self, *parts: str) -> None:
        """Stops training parts of the model.

        Raises:
            InputError: The model has no such part.
        """
        known = self.freezable()
        for part in parts:
            if part not in known:
                raise InputError(f"{part}: a {self.config.model_type} has no such part; it has {', '.join(known)}")
            for parameter in known[part]:
                parameter.requires_grad_(False)

    @property
    def trains_images_alone(self) -> bool:
        """Whether texts have no gradient path: what is trained runs for images only.

        Chunks without images then carry their dummy, see `ItemEncoderInputs`.
        """
        of_images = {id(parameter) for part in self.vision_modules() for parameter in part.parameters()}
        trained = [id(parameter) in of_images for parameter in self.parameters() if parameter.requires_grad]
        return bool(trained) and all(trained)

    def original_arguments(self) -> Mapping[str, Any]:
        """What makes `forward` compute as the original code, where a vector depends there on its neighbours."""
        return {}

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Asked by PEFT, by a name of transformers' that warns of its age since version 5.23."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    # Facts for the rest of the library.

    @property
    def token_embeddings(self) -> torch.Tensor:
        """The weights of the token embedding; their device and dtype are the inputs' and the base's."""
        weight: torch.Tensor = self.get_input_embeddings().weight
        return weight

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """Tokens that have an embedding."""
        return int(self.config.get_text_config().vocab_size)

    @abstractmethod
    def vision_modules(self) -> Sequence[nn.Module]:
        """All that runs for images only, the unused parts included."""

    @abstractmethod
    def check_processor(self, processor: Any, source: Path) -> None:
        """Compares the family's processor with this model.

        Args:
            processor: Makes the model's inputs.
            source: Its folder, for messages.

        Raises:
            InputError: It makes images that the model cannot take.
        """

    @abstractmethod
    def install_compiled(self) -> None:
        """Gives layers classes with compiled elementwise operators (vlm2vec/elementwise.py).

        Each of these classes has an attribute `backend`, which `compile_layers` sets.
        """

    # Layers that repeat: estimates are made with few of them and carried on to the real number.

    @classmethod
    @abstractmethod
    def depths(cls, config: PreTrainedConfig) -> tuple[int, int]:
        """Layers of the decoder and of the vision tower.

        All layers of a kind must be alike. Where they are not (every eighth layer of a tower is another), count groups
        of layers that are.
        """

    @classmethod
    @abstractmethod
    def with_depths(cls, config: PreTrainedConfig, decoder: int, vision: int) -> PreTrainedConfig:
        """The same configuration with other numbers of layers, counted as in `depths`; at least `fewest_depths`."""


# --- The family: what ties the model and its processor together ---


@dataclass(frozen=True)
class Family:
    """The classes of a model family, and what its files and cards say of it.

    Attributes:
        model_type: In config.json; the family's name.
        backbone: The model. Its `config_class` is the family's configuration.
        processor: Makes the model's inputs.
        prompt_formats: The built-in ones, by their names.
        recognise_format: The name of that of a folder without vlm2vec_config.json, None if it cannot be told; raises
            `InputError` for damaged files.
        max_lens: Tokens to which the code of a built-in format truncates texts, by the format's name; None: not at all.
            What is missing has `DEFAULT_MAX_LEN`.
        image_limits: Names of the limits that its images have.
        stored_limits: The limits that a folder's own processor files say, by name.
        vision_unit_name: What a vision unit is, in the plural.
        published_configs: Names of published models, and for each a folder with its config.json (and further files that
            estimates read): what is planned without the model's own folder.
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
        """A format that this family can make.

        Args:
            wanted: A format, or the name of a built-in one.

        Raises:
            InputError: No such name, or a format that it cannot make.
        """
        if not isinstance(wanted, PromptFormat):
            return named_format(self.prompt_formats, wanted)
        self.processor.check_format(wanted)
        return wanted

    def folder_format(self, folder: Path) -> PromptFormat:
        """The format that a folder's model was trained with, if the folder has no file of ours that says so.

        Raises:
            InputError: It cannot be told; the message asks for it.
        """
        return named_format(self.prompt_formats, self.recognise_format(folder), folder)

    def known_format(self, folder: Path) -> PromptFormat | None:
        """As `folder_format`, but None if it cannot be told.

        Raises:
            InputError: Damaged files.
        """
        name = self.recognise_format(folder)
        return None if name is None else named_format(self.prompt_formats, name, folder)

    def default_max_len(self, prompt_format: PromptFormat | None) -> int | None:
        """Tokens to which texts are truncated where neither a user nor a file says it; None: not at all.

        Args:
            prompt_format: The one in force. One that differs from a built-in one in name and instruction alone has that
                one's; None: not known.
        """
        for name, max_len in self.max_lens.items():
            if prompt_format is not None and self.prompt_formats[name].is_same(
                prompt_format, whatever_instruction=True
            ):
                return max_len
        return DEFAULT_MAX_LEN

    @property
    def model_import(self) -> str:
        """The line of Python that imports the model, for a model card."""
        module, name = self.backbone.__module__, self.backbone.__name__
        package = module.rpartition(".")[0]
        is_exported = getattr(sys.modules.get(package), name, None) is self.backbone
        return f"from {package if is_exported else module} import {name}"
