"""Forwards with compiled elementwise operators (vlm2vec/elementwise.py) for layers that families have in common.

A family makes a subclass of its own layer with one of these first, and gives modules that class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from vlm2vec.elementwise import QUICK_GELU, Activation, LayerNorm, RmsNorm


class CompiledRmsNorm:
    """For norms with `weight` and `variance_epsilon`."""

    backend = ""
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The norm over the last dimension."""
        rows = hidden_states.flatten(0, -2)
        normed: Tensor = RmsNorm.apply(rows, self.weight, self.variance_epsilon, self.backend)  # type: ignore[no-untyped-call]
        return normed.view_as(hidden_states)


class CompiledLayerNorm(nn.LayerNorm):
    """Under autocast, which computes in float32, the result has the dtype to which every product would round it."""

    backend = ""

    def forward(self, x: Tensor) -> Tensor:
        """The norm over the last dimension."""
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(x)  # one kernel
        dtype = torch.get_autocast_dtype(kind)
        rows = x.flatten(0, -2)
        normed: Tensor = LayerNorm.apply(rows, self.weight, self.bias, self.eps, dtype, self.backend)  # type: ignore[no-untyped-call]
        return normed.view_as(x)


class CompiledQuickGelu(QuickGELUActivation):
    """`x sigmoid(1.702 x)`."""

    backend = ""

    def forward(self, input: Tensor) -> Tensor:
        """Of any shape."""
        activated: Tensor = Activation.apply(input.flatten(0, -2), QUICK_GELU, self.backend)  # type: ignore[no-untyped-call]
        return activated.view_as(input)
