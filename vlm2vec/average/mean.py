"""The weighted mean of tensors, each read when it is written: one tensor of one source is in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from vlm2vec.average.sources import Source
from vlm2vec.errors import InputError
from vlm2vec.model_folder.weights import LazyTensor

Factors = Literal["exact", "mean"]
_A, _B = ".lora_A.", ".lora_B."


@dataclass(frozen=True)
class _Part:
    """One source's tensor of a name."""

    file: str
    name: str
    tensor: LazyTensor

    def read(self) -> torch.Tensor:
        """The tensor, in its own dtype.

        Raises:
            InputError: It has numbers that are not finite: they would be everywhere in the mean.
        """
        values = self.tensor.read()
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise InputError(f"{self.file}: {self.name} has values that are not finite; leave this folder out")
        return values


def mean_tensors(sources: Sequence[Source], weights: Sequence[float], factors: Factors) -> dict[str, LazyTensor]:
    """The average's tensors, by name in the order of names.

    Args:
        sources: As `compare` has let them pass.
        weights: One a source; their sum is 1.
        factors: Of adapters. "mean": every tensor is the mean of the sources' tensors. "exact": the mean of the
            products B A, which is what adapters add to their base: A of all sources one below the other, B of all
            sources side by side and multiplied by their weights, so that the rank is the sum of the ranks.
    """
    tensors = {}
    for name in sorted(sources[0].weights):
        parts = [_Part(source.name, name, source.weights[name]) for source in sources]
        shape = sources[0].weights[name].shape
        if sources[0].is_adapter and factors == "exact" and (_A in name or _B in name):
            axis = 0 if _A in name else 1
            whole = tuple(size * len(sources) if i == axis else size for i, size in enumerate(shape))
            scales = [1.0] * len(sources) if _A in name else weights
            tensors[name] = LazyTensor(whole, partial(_stack, parts, scales, axis))
        else:
            tensors[name] = LazyTensor(shape, partial(_mean, parts, weights))
    return tensors


def _mean(parts: Sequence[_Part], weights: Sequence[float]) -> torch.Tensor:
    first = parts[0].read()
    if not first.is_floating_point():  # a buffer: numbers of tokens, masks
        for part in parts[1:]:
            if not torch.equal(part.read(), first):
                raise InputError(f"{part.file}: {part.name} is not {parts[0].file}'s; {first.dtype} has no mean")
        return first
    total = first.to(torch.float64, copy=True).mul_(weights[0])
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.add_(part.read().to(torch.float64), alpha=weight)
    return total


def _stack(parts: Sequence[_Part], scales: Sequence[float], axis: int) -> torch.Tensor:
    scaled = [part.read().to(torch.float64) * scale for part, scale in zip(parts, scales, strict=True)]
    return torch.cat(scaled, dim=axis)
