"""Checks adapter_config.json before PEFT allocates an adapter from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vlm2vec.errors import InputError
from vlm2vec.formats.json_files import StrictModel, checked, read_json

_Rank = Annotated[int, Field(ge=1, le=65536)]
_Scale = Annotated[float, Field(gt=0, le=1e9)]
_Names = str | Annotated[list[str], Field(min_length=1)]
_MATRIX = ".lora_A."


class _AdapterFields(StrictModel):
    """Fields that decide the adapter's computation; PEFT reads the others."""

    peft_type: Literal["LORA"]
    base_model_name_or_path: str | None = None
    r: _Rank = 8
    lora_alpha: _Scale = 8
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    target_modules: _Names
    exclude_modules: _Names | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Scale] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_dora: bool = False
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    inference_mode: bool = False


def check_adapter_config(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Checks the file for consistency and against the ranks of the weights.

    Args:
        file: The adapter_config.json.
        shapes: Shapes of the adapter's tensors by name.

    Raises:
        InputError: The file is missing, damaged or of a different kind of adapter, or a value is impossible; the
            message names file and field.
    """
    fields = checked(_AdapterFields, read_json(file), file)
    ranks = {shape[0] for name, shape in shapes.items() if _MATRIX in name and shape}
    written = {f"rank_pattern.{name}": rank for name, rank in (fields.rank_pattern or {}).items()} or {"r": fields.r}
    for field, rank in written.items():
        if rank not in ranks:
            found = ", ".join(map(str, sorted(ranks))) or "no"
            raise InputError(f"{file}: {field} is {rank}, but the adapter's weights have rank {found}")
