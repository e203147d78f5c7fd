"""Compiled layers: elementwise operators between the matrix products become few kernels.

A layer is compiled, not the model: the layers of a kind share their code, which makes compiling short, and what a model
decides on the host (where images go, which lengths a row has) stays outside.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
import torch._dynamo
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm2vec.dora import DoraLinear

# A layer's variants: with and without a graph, training or not, one row or several, DoRA norms kept or not.
_MOST_VARIANTS = 32
# Dropout draws the numbers that it draws uncompiled. Pass 1 and pass 2 are compiled apart, and must have equal masks.
_OPTIONS: dict[str, Any] = {"fallback_random": True}


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Compiles a model's layers in place, for inputs of any number of rows and any length.

    Call it when the layers are as they will run: after an adapter was put on. Compilation itself happens at the first
    calls. Gradient checkpointing stays outside the compiled code: it runs a layer again, as without compiling.

    Args:
        model: Its layers are transformers' (`GradientCheckpointingLayer`), with parameters complete at all times, which
            they are not under ZeRO-3.
        backend: Of `torch.compile`.

    Returns:
        How many layers there are.
    """
    layers: list[nn.Module] = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    for layer in layers:
        layer.__class__ = _compiled_class(type(layer), backend)  # type: ignore[arg-type]  # a class is hashable
        for part in layer.modules():
            if isinstance(part, DoraLinear):
                # Code that computes the norm keeps other tensors for the backward pass than code that is given it:
                # checkpointing, which runs the one and then the other, would stop at the difference.
                part.norm_ahead = True
    return len(layers)


@cache
def _compiled_class(kind: type[nn.Module], backend: str) -> type[nn.Module]:
    """A subclass with compiled code: a closure in each layer instead would keep the original of a copied model."""
    uncheckpointed = getattr(kind.forward, "__wrapped__", kind.forward)
    limit: dict[str, Any] = {"recompile_limit": _MOST_VARIANTS}
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:  # before torch 2.12, for the process alone
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VARIANTS)
        limit = {}
    compiled = torch.compile(
        uncheckpointed, backend=backend, dynamic=True, options=_OPTIONS if backend == "inductor" else None, **limit
    )
    # Making the subclass puts gradient checkpointing around its `forward` again.
    return type(kind.__name__, (kind,), {"forward": compiled, "__module__": kind.__module__})
