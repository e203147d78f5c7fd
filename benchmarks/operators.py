"""Counts FLOPs of operators, and bytes that they read and write, on any device including the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlm2vec.plan.operator_flops import operator_flops

# Operators that read and write no element although torch does not class them as views.
_FREE = {torch.ops.aten._unsafe_view, torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.lift_fresh}


class OperatorCosts(TorchDispatchMode):
    """Adds up the cost of every operator that runs within the context, including backward passes.

    Attributes:
        flops: FLOPs of matrix products, convolutions and attention, by torch's own formulas.
        bytes_moved: Sizes of all operators' inputs and outputs: the memory traffic without fused operators and caches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes_moved = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operator and adds its cost."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.flops += operator_flops(func, args, kwargs, result)
        if not func.is_view and func._overloadpacket not in _FREE:
            self.bytes_moved += sum(_size(leaf) for leaf in tree_leaves((args, kwargs, result)))
        return result


def _size(leaf: Any) -> int:
    """Bytes of a tensor; an expanded one counts once."""
    if not isinstance(leaf, Tensor):
        return 0
    return min(leaf.numel() * leaf.element_size(), leaf.untyped_storage().nbytes())
