"""Adds an adapter to its base's weights, one layer at a time, with PEFT's own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedConfig

from vlm2vec.errors import InputError
from vlm2vec.model_folder.adapter_files import IN_PEFT, empty_adapter
from vlm2vec.model_folder.weights import LazyTensor

_BASE = "base_layer."


def merged_weights(
    base: Mapping[str, LazyTensor], adapter: Mapping[str, LazyTensor], config: PreTrainedConfig, adapter_folder: Path
) -> dict[str, LazyTensor]:
    """The base's weights, those with an adapter merged when they are read, in float32.

    Args:
        base: The base model's weights by their published names.
        adapter: The adapter's weights as PEFT's module names them.
        config: The base model's.
        adapter_folder: With the adapter's configuration.

    Raises:
        InputError: Adapter and base do not fit together.
    """
    adapted = empty_adapter(config, adapter_folder)
    published = adapted.get_base_model().published_name
    weights, unused = dict(base), set(adapter)
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            own_name = published(name.removeprefix(IN_PEFT))
            candidates = {
                key: base.get(f"{own_name}.{key.removeprefix(_BASE)}")
                if key.startswith(_BASE)
                else adapter.get(f"{name}.{key}")
                for key in layer.state_dict()
            }
            sources = _fitting(adapter_folder, name, layer, candidates)
            unused -= {f"{name}.{key}" for key in sources}
            weight = f"{own_name}.weight"
            weights[weight] = LazyTensor(base[weight].shape, partial(_merge, layer, sources))
    if unused:
        raise InputError(f"{adapter_folder}: the base has no place for {len(unused)} tensors, first {min(unused)}")
    return weights


def _fitting(
    folder: Path, name: str, layer: nn.Module, candidates: Mapping[str, LazyTensor | None]
) -> dict[str, LazyTensor]:
    """What a layer is made of, if all of it is there."""
    sources = {}
    for key, empty in layer.state_dict().items():
        source = candidates[key]
        if source is None or source.shape != tuple(empty.shape):
            found = f"of shape {list(source.shape)}" if source is not None else "missing"
            raise InputError(
                f"{folder}: adapter and base do not fit together: {name}.{key} is {found}, expected {list(empty.shape)}"
            )
        sources[key] = source
    return sources


def _merge(layer: Any, sources: Mapping[str, LazyTensor]) -> torch.Tensor:
    merging = deepcopy(layer)
    # Copies: merging changes the weight in place, and what is read may be a mapped file.
    state = {key: source.read().to(torch.float32, copy=True) for key, source in sources.items()}
    merging.load_state_dict(state, assign=True)
    merging.merge()
    weight: torch.Tensor = merging.get_base_layer().weight.data
    return weight
