"""Attention within spans: in groups of equal length, and as one varlen call where a kernel supports it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rig.comparing import assert_close_relative
from tests.rig.qwen_models import loaded
from vlm2vec.backbones.qwen_vl import attention
from vlm2vec.backbones.qwen_vl.attention import Spans

LENGTHS = (4, 4, 12, 8, 8, 8)


def one_by_one(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Each span by itself; all (P, heads, d)."""
    spans = zip(*(each.split(lengths) for each in (query, key, value)), strict=True)
    return torch.cat(
        [F.scaled_dot_product_attention(*(each.transpose(0, 1) for each in span)).transpose(0, 1) for span in spans]
    )


def random_rows(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.randn(3, sum(LENGTHS), 2, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    return made[0], made[1], made[2]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_neighbours_of_equal_length_are_one_batch(implementation: str) -> None:
    layer: Any = loaded("qwen2_vl", implementation).tower.blocks[0].attn
    spans = Spans.of(LENGTHS, torch.device("cpu"), implementation)
    assert spans.boundaries is None
    assert spans.groups() == [(4, 2), (12, 1), (8, 3)]
    rows = random_rows(torch.float32)
    assert_close_relative(layer._attend(*rows, spans), one_by_one(*rows, LENGTHS), 1e-6)


def test_a_kernel_for_spans_of_any_lengths_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it gets, with a stand-in that computes on the CPU: the kernels themselves need a GPU."""
    calls = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int) -> Tensor:
        calls.append((boundaries.dtype, boundaries.tolist(), longest))
        return one_by_one(query, key, value, tuple(boundaries.diff().tolist()))

    layer: Any = loaded("qwen2_vl").tower.blocks[0].attn
    grouped = Spans(LENGTHS, None)
    spans = Spans(LENGTHS, torch.tensor([0, 4, 8, 20, 28, 36, 44], dtype=torch.int32))
    rows = random_rows(torch.bfloat16)
    expected = layer._attend(*rows, grouped)
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: kernel)
    assert_close_relative(layer._attend(*rows, spans), expected, 2.0**-7)
    assert calls == [(torch.int32, [0, 4, 8, 20, 28, 36, 44], 12)]
    # One group needs no such kernel, and it takes no float32.
    layer._attend(*(each[:8] for each in rows), Spans((4, 4), torch.tensor([0, 4, 8], dtype=torch.int32)))
    layer._attend(*random_rows(torch.float32), spans)
    assert len(calls) == 1
