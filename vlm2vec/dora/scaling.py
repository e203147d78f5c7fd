"""Scales the rows of a product by magnitude / norm, with eager operators or compiled.

The scale stays in float32: rounding it to bfloat16 would hide changes of a magnitude below 0.4 %, and promoting the
values to float32, as plain operators do, would double the memory traffic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm2vec.elementwise import run, scale_rows, scale_rows_backward


def scaled(values: Tensor, scale: Tensor, residual: Tensor | None, backend: str | None) -> Tensor:
    """`residual + scale * values` in the values' dtype.

    Args:
        values: The product, (n, out).
        scale: The scale, float32 (out,).
        residual: None, (out,) or (n, out).
        backend: torch.compile's backend; None: eager operators.
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
    """Gradients of values and scale, if needed.

    With eager operators, the scale's gradient sums, in float32, products in the values' dtype. Each product is rounded
    once, as its factors were; float32 copies of both would take four times the memory traffic.
    """
    needs_values, needs_scale = needs
    if backend is not None:
        of_values, of_scale = run(scale_rows_backward, backend, gradient, values, scale, needs_values)
        return of_values, of_scale
    return (
        torch.mul(gradient, scale, out=torch.empty_like(values)) if needs_values else None,
        (gradient * values).sum(dim=0, dtype=scale.dtype) if needs_scale else None,
    )
