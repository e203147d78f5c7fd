"""Compiles the elementwise operators of a model's decoder and vision tower with `torch.compile`.

Modules get subclasses with compiled methods; parameters, their names and hooks stay. Matrix products, attention and
dropout stay too: they are separate kernels either way. Each model family chooses the modules
(`Backbone.install_compiled`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm2vec.backbones.interface import Backbone


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Compiles the elementwise operators of a model's layers in place, for inputs of any number of rows and any length.

    Call it after an adapter was added, when the layers are as they will run. Compilation happens in the first forward
    and backward passes.

    Args:
        model: A module that contains a backbone, with or without an adapter.
        backend: Backend for `torch.compile`.

    Returns:
        Number of modules with compiled operators.
    """
    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, Backbone):
            module.install_compiled()
    changed = [each for each in modules if hasattr(type(each), "backend")]
    for module in changed:
        module.backend = backend
    return len(changed)
