"""Layers that families share, with compiled elementwise operators (vlm2vec/elementwise.py).

A family derives a subclass from one of these and its own layer, and sets it as the class of its modules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from vlm2vec.elementwise import QUICK_GELU, Activation, LayerNorm, RmsNorm


class CompiledRmsNorm:
    """RMS norm for modules with `weight` and `variance_epsilon`."""

    backend = ""
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The norm over the last dimension."""
        rows = hidden_states.flatten(0, -2)
        normed: Tensor = RmsNorm.apply(rows, self.weight, self.variance_epsilon, self.backend)  # type: ignore[no-untyped-call]
        return normed.view_as(hidden_states)


class CompiledLayerNorm(nn.LayerNorm):
    """Layer norm whose result under autocast has the compute dtype, to which the next product would round it anyway."""

    backend = ""

    def forward(self, x: Tensor) -> Tensor:
        """The norm over the last dimension."""
        kind = x.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(x)  # torch runs this in one kernel already
        dtype = torch.get_autocast_dtype(kind)
        rows = x.flatten(0, -2)
        normed: Tensor = LayerNorm.apply(rows, self.weight, self.bias, self.eps, dtype, self.backend)  # type: ignore[no-untyped-call]
        return normed.view_as(x)


class CompiledQuickGelu(QuickGELUActivation):
    """`x sigmoid(1.702 x)`."""

    backend = ""

    def forward(self, input: Tensor) -> Tensor:
        """Applies the activation to a tensor of any shape."""
        activated: Tensor = Activation.apply(input.flatten(0, -2), QUICK_GELU, self.backend)  # type: ignore[no-untyped-call]
        return activated.view_as(input)
