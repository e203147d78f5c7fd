"""Compiled elementwise operators in a model's decoder and vision tower.

Modules get subclasses with other methods: parameters, their names and hooks stay, and so do matrix products, attention
and dropout, which are kernels of their own either way. A family says which (`Backbone.install_compiled`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm2vec.backbones.interface import Backbone


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Compiles the elementwise operators of a model's layers in place, for inputs of any number of rows and any length.

    Call it when the layers are as they will run: after an adapter was put on. Compilation itself happens at the first
    calls.

    Args:
        model: Holds a backbone, maybe with an adapter.
        backend: Of `torch.compile`.

    Returns:
        How many modules have compiled operators.
    """
    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, Backbone):
            module.install_compiled()
    changed = [each for each in modules if hasattr(type(each), "backend")]
    for module in changed:
        module.backend = backend
    return len(changed)
