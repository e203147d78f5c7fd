"""Initial weights for a small model that is trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class WeightNames:
    """A family's names of the parameters that are not initialized like an ordinary linear layer.

    Attributes:
        norms: Parts of the names of norms' weights, which are 1.
        unit: Parts of the names of parameters whose numbers have a standard deviation of 1 (embeddings).
        writers: Parts of the names of layers that write into a residual stream.
        depths: By a part of the names of a stack of layers, the number of its layers. The first part that occurs in a
            name counts.
    """

    norms: Sequence[str]
    unit: Sequence[str]
    writers: Sequence[str]
    depths: Mapping[str, int]


def draw_weights(model: nn.Module, seed: int, names: WeightNames) -> None:
    """Initializes all weights randomly, for training from scratch.

    Linear layers keep their input's scale (standard deviation fan_in^-1/2), those that write into a residual stream are
    scaled down by its depth; embeddings are of size 1. Transformers' own 0.02 would leave a narrow model's attention
    flat, and all items with the same last word at almost the same vector.

    Args:
        model: Its parameters are overwritten.
        seed: The seed of the random numbers.
        names: Distinguishes the kinds of parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if name.endswith("bias"):
            parameter.data.zero_()
        elif any(norm in name for norm in names.norms):
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0.0, _deviation(name, parameter, names), generator=generator)


def _deviation(name: str, parameter: torch.Tensor, names: WeightNames) -> float:
    deviation = 1.0
    if parameter.dim() > 1 and not any(unit in name for unit in names.unit):
        deviation = float(parameter[0].numel() ** -0.5)
    if any(writer in name for writer in names.writers):
        depth = next((depth for stack, depth in names.depths.items() if stack in name), None)
        deviation *= (2 * depth) ** -0.5 if depth else 1.0
    return deviation
