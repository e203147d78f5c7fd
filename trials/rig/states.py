"""Compares the content of two checkpoints bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vlm2vec.ranks import prepare_environment
from vlm2vec.training.checkpoints.state_files import safe_state_files

# Not part of what a run computes: its arguments, and where it was loaded from.
_SETTINGS = ("ds_config",)


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Every tensor and number of a checkpoint's engine and ranks, by file and path inside it."""
    prepare_environment()
    flat: dict[str, Any] = {}
    with safe_state_files():
        for file in sorted([*checkpoint.glob("engine/*.pt"), *checkpoint.glob("ranks/*.pt")]):
            _flatten(str(file.relative_to(checkpoint)), torch.load(file, map_location="cpu"), flat)
    return {name: value for name, value in flat.items() if not name.endswith("meter/seconds")}


def differences(first: Path, second: Path) -> list[str]:
    """Names of the tensors and numbers that are not equal bit for bit."""
    states = state_of(first), state_of(second)
    return [name for name in {**states[0], **states[1]} if not _equal(*(state.get(name) for state in states))]


def _flatten(name: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _SETTINGS:
                _flatten(f"{name}/{key}", inner, into)
    elif isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        for index, inner in enumerate(value):
            _flatten(f"{name}/{index}", inner, into)
    elif isinstance(value, (torch.Tensor, int, float, str)) or value is None:
        into[name] = value


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)
