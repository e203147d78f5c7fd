"""Counts what operators cost on any device, the meta device included: FLOPs and bytes that they read and write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlm2vec.plan.operator_flops import operator_flops

# Operators that touch no element although torch does not call them views.
_FREE = {torch.ops.aten._unsafe_view, torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.lift_fresh}


class OperatorCosts(TorchDispatchMode):
    """Adds up the cost of every operator that runs while it is entered, backward passes included.

    Attributes:
        flops: Of matrix products, convolutions and attention, by torch's own formulas.
        bytes_moved: Sizes of all operators' inputs and outputs: the traffic without fused operators and caches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes_moved = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operator and adds what it cost."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.flops += operator_flops(func, args, kwargs, result)
        if not func.is_view and func._overloadpacket not in _FREE:
            self.bytes_moved += sum(_size(leaf) for leaf in tree_leaves((args, kwargs, result)))
        return result


def _size(leaf: Any) -> int:
    """Bytes of a tensor; an expanded one is read once."""
    if not isinstance(leaf, Tensor):
        return 0
    return min(leaf.numel() * leaf.element_size(), leaf.untyped_storage().nbytes())
