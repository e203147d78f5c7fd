"""Reads the weights of a Hugging Face folder lazily, tensor by tensor, and computes their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vlm2vec.backbones.checkpoint import Shape, tensor_shapes, weight_files
from vlm2vec.backbones.registry import family_of_folder

# Number of values that a fingerprint takes from each of the beginning, the middle and the end of a tensor.
_SAMPLED = 64


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are read only when needed.

    Attributes:
        shape: Shape of the tensor.
        read: Returns the tensor, on the CPU. It may be a view of a mapped file: copy it before changing or keeping it.
    """

    shape: Shape
    read: Callable[[], torch.Tensor]


def folder_weights(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint folder (safetensors, or pickles opened with `weights_only=True`) by name.

    Tensors get their published names. An alias is dropped where the tensor's own name is there too, else renamed.

    Raises:
        InputError: The folder has no weights, a shard is missing, a file cannot be read (see `tensor_shapes`), or the
            model's family is unknown.
    """
    weights: dict[str, LazyTensor] = {}
    for file in weight_files(folder):
        weights |= file_weights(file)
    names = family_of_folder(folder).backbone.tensor_names
    weights = names.published(weights)
    for alias, name in names.aliases.items():
        if alias in weights:
            weights.setdefault(name, weights.pop(alias))
    return weights


def file_weights(file: Path) -> dict[str, LazyTensor]:
    """The tensors of one weight file, by the names in the file.

    Raises:
        InputError: See `tensor_shapes`.
    """
    shapes = tensor_shapes(file)
    if file.suffix == ".safetensors":
        content: Any = safe_open(file, framework="pt")
        return {name: LazyTensor(shape, partial(content.get_tensor, name)) for name, shape in shapes.items()}
    tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return {name: at_hand(tensor) for name, tensor in tensors.items()}


def at_hand(tensor: torch.Tensor) -> LazyTensor:
    """Wraps a tensor that is in memory already, or mapped from a file."""
    return LazyTensor(tuple(tensor.shape), lambda: tensor)


def weights_fingerprint(folder: Path) -> str:
    """Fingerprint that tells weights apart without reading all: a hash of names, shapes and sampled values, 32 digits.

    It is independent of the division into files, of float32 or bfloat16, and of whether `lm_head` is there. Training
    changes all values of the tensors that it trains, so that a few of each are enough.

    Raises:
        InputError: See `folder_weights`.
    """
    digest = hashlib.sha256()
    unused = family_of_folder(folder).backbone.tensor_names.unused
    for name, tensor in sorted(folder_weights(folder).items()):
        if name in unused:
            continue
        values = tensor.read().reshape(-1)
        middle = max(0, len(values) - _SAMPLED) // 2
        parts = (values[:_SAMPLED], values[middle : middle + _SAMPLED], values[-_SAMPLED:])
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(torch.cat(parts).to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]
