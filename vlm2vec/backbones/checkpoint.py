"""Checks a checkpoint folder by its headers, before gigabytes are read, and reports mismatches in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open

from vlm2vec.errors import InputError
from vlm2vec.files import refuse_lfs_pointer
from vlm2vec.formats.json_files import StrictModel, checked, read_json

Shape = tuple[int, ...]
_Tensor = TypeVar("_Tensor")
CONFIG_FILE = "config.json"

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = tuple(name + ".index.json" for name in _WHOLE)
_WEIGHT_FILE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


@dataclass(frozen=True)
class TensorNames:
    """Names of some tensors in a family's published weight files.

    Attributes:
        embeddings: The token embedding.
        head: The output head, which no embedding depends on; a file may have it.
        aliases: Second names of tensors, with their first names; a file may have one of them or both.
        spellings: Prefixes of names in files of other programs, with the published prefixes; both end with a dot.
    """

    embeddings: str
    head: str = "lm_head.weight"
    aliases: Mapping[str, str] = field(default_factory=dict)
    spellings: Mapping[str, str] = field(default_factory=dict)

    @property
    def unused(self) -> frozenset[str]:
        """Names that a file may have although the model does not use them."""
        return frozenset({self.head, *self.aliases})

    def published(self, found: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
        """A checkpoint's tensors by their published names, also if the checkpoint uses other prefixes.

        A checkpoint with the token embedding under its published name is assumed to use published names only.
        """
        if self.embeddings in found:
            return dict(found)
        return {self.published_spelling(name): tensor for name, tensor in found.items()}

    def published_spelling(self, name: str) -> str:
        """Published name of a tensor or a module."""
        return renamed(name, self.spellings)

    def missing_aliases(self, found: Mapping[str, Shape]) -> dict[str, str]:
        """Second names in a file that lacks the first ones, with their first names."""
        return {alias: name for alias, name in self.aliases.items() if alias in found and name not in found}


def renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """A name with its prefix replaced, if it starts with one of the given prefixes."""
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


class _WeightIndex(StrictModel):
    """Content of `model.safetensors.index.json`: the file of every tensor."""

    weight_map: dict[str, str]


def resolve_folder(path: str | Path) -> Path:
    """Returns a local folder as it is; downloads a Hugging Face repository (safetensors files if it has any).

    Raises:
        InputError: It is neither a folder nor a reachable repository, or it is a folder of a training run.
    """
    if Path(path).is_dir():
        _refuse_training_output(Path(path))
        return Path(path)
    if Path(path).exists():
        raise InputError(f"{path}: expected a checkpoint folder, not a file")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.bin"]))
    except Exception as error:  # the hub's client has an error type each for offline, unknown, gated and malformed
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no such folder, and not available from the Hugging Face hub ({reason})") from error
    return folder


def _refuse_training_output(folder: Path) -> None:
    """Refuses a run's folder, one of its checkpoints or a part of one, and a bare DeepSpeed checkpoint.

    Raises:
        InputError: It is one of these; the message says how to export a model from it.
    """
    if any((folder / name).is_file() for name in (*_WHOLE, *_INDEX)):
        return
    if any(folder.glob("checkpoint-*/run.json")) or (folder / "run.json").is_file():
        run = folder
    elif (folder.parent / "run.json").is_file() and folder.name in ("encoder", "engine", "ranks"):
        run = folder.parent
    elif any(any(folder.glob(pattern)) for pattern in ("*_optim_states.pt", "*/*_optim_states.pt")):
        raise InputError(
            f"{folder}: a raw ZeRO checkpoint, not a model; export it first, with the folder of its run or checkpoint "
            "(where run.json is): python -m vlm2vec.export RUN OUT"
        )
    else:
        return
    raise InputError(
        f"{folder}: belongs to a training run, not a model; export it first: python -m vlm2vec.export {run} OUT"
    )


def has_weights(folder: Path) -> bool:
    """Whether a folder holds the weights of a whole model, complete or not."""
    return any((folder / name).is_file() for name in _WHOLE + _INDEX)


def remove_weights(folder: Path) -> None:
    """Removes the weight files of a whole model: single files, shards and their index."""
    for file in folder.iterdir():
        if _WEIGHT_FILE.fullmatch(file.name):
            file.unlink()


def weight_files(folder: Path) -> list[Path]:
    """The weight files: safetensors are preferred to pickles, a single file to shards.

    Raises:
        InputError: There are no weights, or a shard that the index names is missing.
    """
    for whole, index in zip(_WHOLE, _INDEX, strict=True):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            files = checked(_WeightIndex, read_json(folder / index), folder / index).weight_map.values()
            return [_existing_shard(folder, name) for name in sorted(set(files))]
    raise InputError(f"{folder}: holds no weights ({', '.join(_WHOLE + _INDEX)})")


def _existing_shard(folder: Path, name: str) -> Path:
    if Path(name).name != name or "\0" in name:
        raise InputError(f"{folder}: the weight index names {name!r}, which is outside the folder")
    if not (folder / name).is_file():
        raise InputError(f"{folder}: shard {name} is missing; download it again")
    return folder / name


def tensor_shapes(file: Path) -> dict[str, Shape]:
    """Names and shapes of the tensors in a weight file, from its header; pickles are opened with `weights_only=True`.

    Raises:
        InputError: The file is damaged, a Git LFS pointer, or a pickle with more than tensors in it.
    """
    refuse_lfs_pointer(file)
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as content:
                return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
        # map_location="meta": tensors without their data.
        tensors = torch.load(file, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: damaged weight file ({' '.join(str(error).split())[:200]})") from error
    except Exception as error:  # such as pickle.UnpicklingError: the file holds something other than tensors
        raise InputError(f"{file}: refused, a pickle may hold only tensors ({type(error).__name__})") from error


def checkpoint_shapes(folder: Path) -> dict[str, Shape]:
    """Names and shapes of all tensors of a checkpoint folder."""
    return {name: shape for file in weight_files(folder) for name, shape in tensor_shapes(file).items()}


def check_tensors(
    folder: Path, found: Mapping[str, Shape], expected: Mapping[str, Shape], names: TensorNames
) -> dict[str, str]:
    """Compares names and shapes of a folder's tensors with the model's.

    Args:
        folder: The checkpoint, for messages.
        found: Its tensors.
        expected: The model's tensors by their published names.
        names: Tensor names of the family.

    Returns:
        The renaming to load with, by patterns: it maps second names whose first names are missing; often empty.

    Raises:
        InputError: Tensors are missing or unexpected, or have different shapes.
    """
    aliases = names.missing_aliases(found)
    found = {**found, **{name: found[alias] for alias, name in aliases.items()}}
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys() - names.unused)
    if missing or unexpected:
        raise InputError(f"{folder}: weights do not fit the model: {_listing(missing=missing, unexpected=unexpected)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise InputError(f"{folder}: {name} has shape {list(found[name])}, config.json asks for {list(shape)}")
    return {"^" + alias.replace(".", r"\."): name for alias, name in aliases.items()}


def _listing(**groups: list[str]) -> str:
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in groups.items()
        if names
    )
