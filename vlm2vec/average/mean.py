"""Weighted mean of tensors, read lazily: one tensor of one source is in memory at a time."""

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
    """The tensor of one name in one source."""

    file: str
    name: str
    tensor: LazyTensor

    def read(self) -> torch.Tensor:
        """Reads the tensor in the dtype of its file.

        Raises:
            InputError: It holds NaN or infinity, which would spoil the mean.
        """
        values = self.tensor.read()
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise InputError(f"{self.file}: {self.name} has values that are not finite; leave this folder out")
        return values


def mean_tensors(sources: Sequence[Source], weights: Sequence[float], factors: Factors) -> dict[str, LazyTensor]:
    """The averaged tensors by name, sorted by name.

    Args:
        sources: The sources; `compare` must have accepted them.
        weights: One per source; they sum to 1.
        factors: For adapters. "mean": every tensor is the mean of the sources' tensors. "exact": the mean of the
            products B A that adapters add to their base. It stacks all sources' A (rows) and all sources' B (columns,
            multiplied by their weights), so that the rank is the sum of the ranks.
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
    if not first.is_floating_point():  # a buffer of integers, such as position ids, has no mean
        for part in parts[1:]:
            if not torch.equal(part.read(), first):
                raise InputError(
                    f"{part.file}: {part.name} differs from {parts[0].file}'s; {first.dtype} values have no mean"
                )
        return first
    total = first.to(torch.float64, copy=True).mul_(weights[0])
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.add_(part.read().to(torch.float64), alpha=weight)
    return total


def _stack(parts: Sequence[_Part], scales: Sequence[float], axis: int) -> torch.Tensor:
    scaled = [part.read().to(torch.float64) * scale for part, scale in zip(parts, scales, strict=True)]
    return torch.cat(scaled, dim=axis)
