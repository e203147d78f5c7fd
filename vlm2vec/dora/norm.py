"""Computes the row norms of adapted weights from small matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows of a weight that are converted to float32 at a time while their norms are computed.
_NORM_ROWS = 4096


class WeightNorm:
    """Row norms of an adapted weight W + s B A, built up by the modules that hold A, W and B, in this order.

    It also keeps copies of A and s B in the dtype of the products, which change only when the norm does.

    Under ZeRO-3 a module's parameters are complete only while that module runs, so each module adds its part:
    `||W + s B A||^2 = ||W||^2 + 2 s rowdot(W A^T, B) + s^2 rowdot(B A A^T, B)`. The backward pass treats the norm as a
    constant (DoRA, arXiv 2402.09353, section 4.3).

    Args:
        scaling: s, the adapter's alpha / r.

    Attributes:
        value: The norms, float32 (out_features,); None before `add_b`.
        bias: The frozen layer's bias (out_features,), or None.
    """

    def __init__(self, scaling: float) -> None:
        self.scaling = scaling
        self.value: Tensor | None = None
        self.bias: Tensor | None = None
        self._a_as: dict[torch.dtype, Tensor] = {}
        self._scaled_b_as: dict[torch.dtype, Tensor] = {}

    def a_as(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Detached copy of A in a dtype, (r, in_features)."""
        if dtype not in self._a_as:
            self._a_as[dtype] = weight.detach().to(dtype, copy=True)
        return self._a_as[dtype]

    def scaled_b_as(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Detached copy of s B in a dtype, (out_features, r)."""
        if dtype not in self._scaled_b_as:
            self._scaled_b_as[dtype] = (self.scaling * weight.detach()).to(dtype)
        return self._scaled_b_as[dtype]

    def add_a(self, weight: Tensor) -> None:
        """Adds A, (r, in_features)."""
        self._a = weight.detach().float().clone()

    def add_base(self, weight: Tensor, bias: Tensor | None) -> None:
        """Adds W, (out_features, in_features), and its bias."""
        squares, products = [], []
        for rows in torch.split(weight.detach(), _NORM_ROWS):
            rows = rows.float()  # no copy if it is already float32
            squares.append(rows.square().sum(dim=1))
            products.append(_float32_product(rows, self._a.T))
        self._squares, self._products = torch.cat(squares), torch.cat(products)
        self.bias = None if bias is None else bias.detach().clone()

    def add_b(self, weight: Tensor) -> None:
        """Adds B, (out_features, r), and computes the norms."""
        b = weight.detach().float()
        cross = (self._products * b).sum(dim=1)
        quadratic = (_float32_product(b, _float32_product(self._a, self._a.T)) * b).sum(dim=1)
        self.value = (self._squares + 2 * self.scaling * cross + self.scaling**2 * quadratic).clamp_(min=0).sqrt_()
        del self._a, self._squares, self._products


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32, into a given tensor, because autocast would round both to bfloat16 otherwise."""
    return torch.mm(left, right, out=left.new_empty(left.shape[0], right.shape[1]))
