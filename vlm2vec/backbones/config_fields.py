"""Bounds for the numbers in a config.json and checks against the weights, shared by families."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from transformers.activations import ACT2FN

from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import shorten

# Bounds far above every published model, but small enough to describe a model of these sizes without allocating it.
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
    """Refuses an unknown activation.

    Raises:
        ValueError: The activation is unknown; the message names the field.
    """
    if name not in ACT2FN:
        raise ValueError(f"{field} {shorten(name)} is not an activation that transformers knows")


def check_depths(file: Path, depths: Mapping[str, tuple[int, str]], tensors: Collection[str]) -> None:
    """Compares numbers of layers with the weights, before layers are built.

    Args:
        file: The config.json.
        depths: For each field, its value and the prefix of the layers' tensor names, without the number.
        tensors: Names of the weights; if no layer is among them, depths are not compared.

    Raises:
        InputError: The weights have a different number of layers.
    """
    for field, (written, prefix) in depths.items():
        numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
        if numbers and len(numbers) != written:
            raise InputError(f"{file}: {field} is {written}, but the weights have {len(numbers)} layers")
