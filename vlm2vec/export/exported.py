"""The settings of an export, and what it wrote."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlm2vec.backbones.interface import Family


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        family: The model's, or that of an adapter's base.
        num_bytes: Of the tensors.
        dtype: Of the tensors.
        is_adapter: An adapter, not a whole model.
        has_lm_head: The base's output head is in it.
        base_at_hand: The base model could be read.
        is_tied: The output head is the token embedding: no file holds another one.
    """

    family: Family
    num_bytes: int
    dtype: torch.dtype
    is_adapter: bool
    has_lm_head: bool
    base_at_hand: bool
    is_tied: bool = False

    @property
    def dtype_name(self) -> str:
        """Such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        head = "with tied" if self.is_tied else "with" if self.has_lm_head else "without"
        kind = "adapter" if self.is_adapter else f"model {head} lm_head"
        size = f"{self.num_bytes / 1e9:.2f} GB" if self.num_bytes >= 1e8 else f"{self.num_bytes / 1e6:.2f} MB"
        return f"{kind}, {self.dtype_name}, {size}"
