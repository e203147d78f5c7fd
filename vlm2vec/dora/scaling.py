"""Rows of a product scaled by magnitude / norm, operator by operator or compiled.

The scale stays in float32: rounding it to bfloat16 would hide every change of a magnitude below 0.4 %; promoting the
values to float32, as plain operators do, would double the traffic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm2vec.elementwise import run, scale_rows, scale_rows_backward


def scaled(values: Tensor, scale: Tensor, residual: Tensor | None, backend: str | None) -> Tensor:
    """`residual + scale * values` in the values' dtype.

    Args:
        values: (n, out).
        scale: Float32 (out,).
        residual: None, (out,), or like values.
        backend: Of torch.compile; None: operator by operator.
    """
    if backend is not None:
        compiled: Tensor = run(scale_rows, backend, values, scale, residual)
        return compiled
    result = torch.empty_like(values)
    if residual is None:
        return torch.mul(values, scale, out=result)
    return torch.addcmul(residual, values, scale, out=result)


def scaled_backward(
    gradient: Tensor, values: Tensor, scale: Tensor, needs: tuple[bool, bool], backend: str | None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of values and scale, where they are needed.

    Operator by operator, the scale's is a sum over all rows in float32 of products in the values' dtype: each is
    rounded once, as its two factors were, and float32 copies of both would be four times the traffic.
    """
    needs_values, needs_scale = needs
    if backend is not None:
        of_values, of_scale = run(scale_rows_backward, backend, gradient, values, scale, needs_values)
        return of_values, of_scale
    return (
        torch.mul(gradient, scale, out=torch.empty_like(values)) if needs_values else None,
        (gradient * values).sum(dim=0, dtype=scale.dtype) if needs_scale else None,
    )
