"""Tensors that are read when they are asked for: the weights of a Hugging Face folder, and their fingerprint."""

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

# Values that a fingerprint takes from the beginning, the middle and the end of a tensor.
_SAMPLED = 64


@dataclass(frozen=True)
class LazyTensor:
    """A tensor's shape, and how to get its values.

    Attributes:
        shape: Its shape.
        read: Gives the tensor, on the CPU. It may be a view of a mapped file: copy it before it is changed or kept.
    """

    shape: Shape
    read: Callable[[], torch.Tensor]


def folder_weights(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint folder (safetensors, or pickles opened with `weights_only=True`) by name.

    A second name of a tensor is dropped, or put right where it is the only one; other spellings are put right.

    Raises:
        InputError: No weights, a shard is missing, a file cannot be read (see `tensor_shapes`), or a model of no known
            family.
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
    """The tensors of one weight file, by the names that it gives them.

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
    """A tensor that is there already, in memory or as a mapped file's."""
    return LazyTensor(tuple(tensor.shape), lambda: tensor)


def weights_fingerprint(folder: Path) -> str:
    """Tells weights apart without reading all of them: 32 hexadecimal digits over names, shapes and sampled values.

    The same for the same weights, however they are cut into files, in float32 or rounded to bfloat16, with `lm_head` or
    without. Training changes every tensor that it trains, so that a few values of each are enough.

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
