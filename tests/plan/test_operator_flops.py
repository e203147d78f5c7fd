"""FLOPs of single operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import flop_counter

from vlm2vec.plan.meter import TensorMeter


def attention_flops(heads: int, shared: int) -> int:
    """Of forward and backward of one attention, with `shared` heads of keys and values."""
    query, key, value = (
        torch.empty(2, each, 16, 8, device="meta").requires_grad_() for each in (heads, shared, shared)
    )
    with TensorMeter("meta") as meter:
        result: Any = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)
        result[0].sum().backward()
    return int(meter.flops)


def test_heads_that_share_keys_cost_as_many_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = 2 * 2 * 6 * 16 * 16 * 8 * 2  # two products
    assert attention_flops(6, 6) == forward + forward // 2 * 5  # backward: five
    assert attention_flops(6, 2) == attention_flops(6, 6)

    def before_2_13(*shapes: tuple[int, ...]) -> int:
        assert len({shape[1] for shape in shapes}) == 1
        return 1

    monkeypatch.setattr(flop_counter, "sdpa_flop_count", before_2_13)
    assert attention_flops(6, 2) > 0
