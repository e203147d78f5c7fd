"""FLOPs of one operator, by torch's formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten
# Index of the first of queries, keys and values, shape (n, heads, length, width), among the arguments.
_FIRST_OF_ATTENTION = {
    **dict.fromkeys(
        (
            _ATEN._scaled_dot_product_flash_attention,
            _ATEN._scaled_dot_product_efficient_attention,
            _ATEN._scaled_dot_product_cudnn_attention,
        ),
        0,
    ),
    **dict.fromkeys(
        (
            _ATEN._scaled_dot_product_flash_attention_backward,
            _ATEN._scaled_dot_product_efficient_attention_backward,
            _ATEN._scaled_dot_product_cudnn_attention_backward,
        ),
        1,
    ),
}


def operator_flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """FLOPs of a matrix product, a convolution or an attention; 0 for every other operator.

    Args:
        func: The operator as `TorchDispatchMode` passes it.
        args, kwargs, result: Arguments and result of the call.
    """
    formula = flop_registry.get(func._overloadpacket)
    if formula is None:
        return 0
    first = _FIRST_OF_ATTENTION.get(func._overloadpacket)
    if first is not None:
        args = _with_equal_heads(args, first)
    return int(formula(*args, **kwargs, out_val=result))


def _with_equal_heads(args: tuple[Any, ...], first: int) -> tuple[Any, ...]:
    """Arguments of an attention with key and value heads repeated to the number of query heads.

    Query heads that share keys and values (GQA) cost as much as heads with separate ones, but torch's formula refuses
    them before version 2.13.
    """
    query, key, value = args[first : first + 3]
    heads = query.shape[1]
    return (*args[: first + 1], _heads(key, heads), _heads(value, heads), *args[first + 3 :])


def _heads(tensor: Tensor, number: int) -> Tensor:
    return tensor if tensor.shape[1] == number else tensor[:, :1].expand(-1, number, -1, -1)
