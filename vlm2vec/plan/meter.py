"""Measures operators on any device, even the meta device: bytes of live tensors, their peak, and FLOPs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlm2vec.plan.operator_flops import operator_flops


class TensorMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that follows every storage that an operator returns until it is freed.

    It does not see a caching allocator's rounding, libraries' memory and workspaces inside an operator. Tensors made
    earlier count only after a call of `count`.

    Args:
        device_type: Type of device whose tensors count, such as "meta" or "cpu".

    Attributes:
        alive: Bytes of the live storages.
        peak: Maximum of `alive` since `reset_peak`.
        flops: FLOPs of matrix products, convolutions and attention since the beginning, by torch's formulas.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type = device_type
        self.alive = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {}

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Counts storages that exist already."""
        for tensor in tensors:
            self._follow(tensor)

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Excludes these storages, also when an operator returns a view of them."""
        for tensor in tensors:
            self._follow(tensor, counts=False)

    def reset_peak(self) -> None:
        """Sets the peak to the current value."""
        self.peak = self.alive

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operator, counts its FLOPs and follows what it returns."""
        result = func(*args, **(kwargs or {}))
        self.flops += operator_flops(func, args, kwargs or {}, result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor, counts: bool = True) -> None:
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:
            return
        size = storage.nbytes() if counts else 0
        self._sizes[storage._cdata] = size
        weakref.finalize(storage, self._freed, storage._cdata)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _freed(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)
