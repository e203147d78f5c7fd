"""Converts embeddings that users pass to tensors, and refuses those that are not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vlm2vec.errors import InputError
from vlm2vec.inputs.user_lists import in_order


def as_vectors(name: str, values: Any) -> torch.Tensor:
    """Converts vectors to one float32 tensor, in the order of iteration."""
    if isinstance(values, torch.Tensor):
        return values.to(torch.float32)
    try:
        if getattr(values, "ndim", 1) == 2 or (isinstance(values, np.ndarray) and values.dtype != object):
            return torch.from_numpy(np.array(values, dtype=np.float32))
        rows = in_order(name, values)
        return torch.stack([torch.as_tensor(row, dtype=torch.float32) for row in rows])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: not vectors of equal length ({' '.join(str(error).split())})") from error


def refuse_not_finite(vectors: torch.Tensor) -> None:
    """Refuses embeddings with NaN or infinity, which would be ranked like numbers.

    Raises:
        InputError: An embedding is not finite; the message names the first such item.
    """
    broken = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten()
    if len(broken):
        raise InputError(
            f"item {int(broken[0])}: the model gives NaN or infinity for it (for {len(broken)} of {len(vectors)} "
            "items); check the checkpoint and its precision"
        )
