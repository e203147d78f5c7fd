"""Records every collective that runs: operator, bytes, and part of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The first part of a step, in which ranks compare what they are about to run.
AGREE = "agree"


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every collective; all of them are operators of torch's dispatcher, whoever calls them.

    The bytes are those of the largest tensor, that is of everything that is reduced, gathered or scattered.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = AGREE
        self.seen: list[tuple[str, str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            largest = max((tensor.numel() * tensor.element_size() for tensor in tensors), default=0)
            self.seen.append((self.part, func._opname, largest))
        return func(*args, **(kwargs or {}))
