"""The base model of a run: where it is, what of it goes into the exported folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig

from vlm2vec.backbones.checkpoint import Shape, resolve_folder
from vlm2vec.backbones.interface import Family
from vlm2vec.backbones.registry import family_of_folder
from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import read_json
from vlm2vec.model_folder.weights import LazyTensor, folder_weights

# Files that may name Python code beside them: programs such as vLLM read the model through it.
_NAMES_CODE = ("config.json", "processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class BaseModel:
    """A base model that is at hand.

    Attributes:
        name: As the run names it: a folder, or a Hugging Face repository.
        folder: Where its files are.
    """

    name: str
    folder: Path

    @cached_property
    def family(self) -> Family:
        """What kind of model it is.

        Raises:
            InputError: config.json is missing or damaged, or of no known family.
        """
        return family_of_folder(self.folder)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Its configuration, checked against its weights.

        Raises:
            InputError: They do not fit together.
        """
        return self.family.backbone.check_folder(self.folder)[0]

    @cached_property
    def weights(self) -> dict[str, LazyTensor]:
        """Its tensors."""
        return folder_weights(self.folder)

    def lm_head(self, expected: Mapping[str, Shape]) -> dict[str, LazyTensor]:
        """The output head, which training never touches: one tensor, or none if this base has none that fits.

        Args:
            expected: The model's tensors, of which the token embedding has the head's shape.
        """
        names = self.family.backbone.tensor_names
        head = self.weights.get(names.head)
        fits = head is not None and head.shape == expected[names.embeddings]
        return {names.head: head} if head is not None and fits else {}


def find_base(recorded: str, given: str | None) -> BaseModel | None:
    """The base model of a run.

    Args:
        recorded: The `--model_name` of the run.
        given: The `--base_model` of this program; downloaded if needed.

    Returns:
        None if the recorded one is neither a folder nor in the Hugging Face cache; it is not downloaded.

    Raises:
        InputError: The given base model was not found.
    """
    if given is not None:
        return BaseModel(given, resolve_folder(given))
    if Path(recorded).is_dir():
        return BaseModel(recorded, Path(recorded))
    try:
        cached = snapshot_download(recorded, local_files_only=True, allow_patterns=["*.json", "*.safetensors", "*.bin"])
    except Exception:  # not in the cache, or not even the form of a repository's name: each has its type
        return None
    return BaseModel(recorded, Path(cached))


def carry_code_references(base: BaseModel, folder: Path) -> None:
    """Lets the exported folder name the same Python code as its base does, for programs that load a model through it.

    Code of a local base is copied; code of a repository is named with the repository. Nothing of it is run here.
    """
    is_local = Path(base.name).is_dir()
    if is_local:
        for file in base.folder.glob("*.py"):
            shutil.copyfile(file, folder / file.name)
    for name in _NAMES_CODE:
        source = read_json(base.folder / name) if (base.folder / name).is_file() else {}
        references = source.get("auto_map")
        if not isinstance(references, dict) or not references:
            continue
        if not is_local:
            references = {
                key: value if "--" in str(value) else f"{base.name}--{value}" for key, value in references.items()
            }
        target = folder / name
        written = read_json(target) if target.is_file() else {"processor_class": source.get("processor_class")}
        target.write_text(json.dumps(written | {"auto_map": references}, indent=2) + "\n", encoding="utf-8")


def require_base(base: BaseModel | None, recorded: str) -> BaseModel:
    """For what cannot be done without the base model.

    Raises:
        InputError: It is not at hand.
    """
    if base is None:
        raise InputError(f"{recorded}: the run's base model is not at hand; say where it is with --base_model")
    return base
