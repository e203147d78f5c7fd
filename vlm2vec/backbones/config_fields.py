"""Bounds for the numbers of a config.json, and checks of it against the weights, that families share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from transformers.activations import ACT2FN

from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import shorten

# Far above every published model, and small enough that a model of these sizes is described without being allocated.
Layers = Annotated[int, Field(ge=1, le=1024)]
Heads = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=1 << 20)]
Positions = Annotated[int, Field(ge=2, le=1 << 31)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
TokenId = Annotated[int, Field(ge=-1, le=1 << 31)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
Precision = Literal["float32", "bfloat16", "float16"]


def known_activation(field: str, name: str) -> None:
    """Refuses the name of no activation.

    Raises:
        ValueError: It names the field.
    """
    if name not in ACT2FN:
        raise ValueError(f"{field} {shorten(name)} is not an activation that transformers knows")


def check_depths(file: Path, depths: Mapping[str, tuple[int, str]], tensors: Collection[str]) -> None:
    """Compares numbers of layers with the weights, before so many are built.

    Args:
        file: config.json.
        depths: By field: its value, and what the names of the layers' tensors begin with, number excluded.
        tensors: The names of the weights; if no layer is among them, depths are not compared.

    Raises:
        InputError: The weights have another number of layers.
    """
    for field, (written, prefix) in depths.items():
        numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
        if numbers and len(numbers) != written:
            raise InputError(f"{file}: {field} is {written}, but the weights have {len(numbers)} layers")
