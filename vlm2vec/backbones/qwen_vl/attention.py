"""Attention of the vision towers: spans of equal length in one batch, or all spans in one call of a varlen kernel."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import VisionAttention, eager_attention_forward

from vlm2vec.backbones.qwen_vl.rope import turned

# Takes queries, keys and values (P, heads, d), boundaries int32 (spans + 1,) and the longest span; returns
# (P, heads, d).
_VarlenKernel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Spans:
    """Consecutive rows that attend only to each other: images or windows.

    Attributes:
        lengths: Number of rows of each span.
        boundaries: Starts of the spans and the last end, int32 (spans + 1,) on the device, for a kernel that takes
            spans of any lengths; None without such a kernel.
    """

    lengths: tuple[int, ...]
    boundaries: Tensor | None

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device, implementation: str | None) -> Spans:
        """Makes spans of given lengths.

        Args:
            lengths: Lengths, on the host.
            device: Device of the rows.
            implementation: Attention implementation in the model's configuration.
        """
        boundaries = None
        if device.type == "cuda" and implementation != "eager" and _varlen_kernel() is not None:
            sums = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device="cpu")
            boundaries = sums.pin_memory().to(device, non_blocking=True)
        return cls(tuple(lengths), boundaries)

    def groups(self) -> list[tuple[int, int]]:
        """Runs of neighbouring spans with equal length: length and number of spans."""
        return [(length, len(list(equal))) for length, equal in itertools.groupby(self.lengths)]


class SpanAttention(VisionAttention):
    """Class for the attention modules of the three towers, whose parts have the same names."""

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Spans, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        """Attention within spans.

        Args:
            hidden_states: Rows (P, width).
            cu_seqlens: The spans, under the name by which a block passes them on.
            position_embeddings: Result of `TowerRope`, float32 (P, d) each.

        Returns:
            Rows (P, width).
        """
        mixed = self._attend(*self.heads(hidden_states, position_embeddings), cu_seqlens)
        result: Tensor = self.proj(mixed.reshape(len(hidden_states), -1))
        return result

    def heads(self, rows: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated by their positions, and values of rows (P, width): (P, heads, d) each."""
        heads = self.qkv(rows).view(len(rows), 3, self.num_heads, self.head_dim)
        query, key = turned(heads[:, :2], *position_embeddings).unbind(1)
        return query, key, heads[:, 2]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
        groups = spans.groups()
        kernel = _varlen_kernel() if spans.boundaries is not None else None
        if kernel is not None and len(groups) > 1 and query.dtype in (torch.bfloat16, torch.float16):
            return kernel(query, key, value, spans.boundaries, max(spans.lengths))  # type: ignore[arg-type]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        parts, start = [], 0
        for length, count in groups:
            stop = start + length * count
            parts_of = (each[start:stop].view(count, length, *each.shape[1:]) for each in (query, key, value))
            batch = (each.transpose(1, 2) for each in parts_of)
            part, _ = attend(self, *batch, attention_mask=None, scaling=self.scaling, is_causal=False)
            parts.append(part.flatten(0, 1))
            start = stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@cache
def _varlen_kernel() -> _VarlenKernel | None:
    """Kernel for attention over spans of any lengths in one call (GPU, 16-bit tensors); None if not installed."""
    for module, name in (("torch.nn.attention.varlen", "varlen_attn"), ("flash_attn", "flash_attn_varlen_func")):
        try:
            kernel = getattr(importlib.import_module(module), name)
        except ImportError:
            continue
        return lambda query, key, value, boundaries, longest: kernel(
            query, key, value, boundaries, boundaries, longest, longest
        )
    return None
