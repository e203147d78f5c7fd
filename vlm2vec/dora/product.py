"""Runs a DoRA layer as one autograd function, if parameters are always complete (ZeRO-1 and 2, one process).

With short kernels the host limits a step: calling modules and building autograd's graph, with the tensors that each
node saves, takes longer than launching the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm2vec.dora.norm import WeightNorm
from vlm2vec.dora.scaling import scaled, scaled_backward


@dataclass(frozen=True)
class Constants:
    """Values that a layer's calls share as long as no weight changes.

    Attributes:
        weight: W, (out, in).
        bias: Bias of the frozen layer (out,), or None.
        a: A in the dtype of the products, (r, in).
        scaled_b: s B in the dtype of the products, (out, r).
        scaling: s, the adapter's alpha / r.
        norm: Norms of the rows of W + s B A, float32 (out,).
        scale: The magnitude divided by the norm, float32 (out,).
        backend: torch.compile's backend for the elementwise operators; None: not compiled.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    scaled_b: Tensor
    scaling: float
    norm: Tensor
    scale: Tensor
    backend: str | None

    @classmethod
    def of(cls, layer: Any, name: str, norm: WeightNorm, dtype: torch.dtype) -> Constants:
        """Constants of a `DoraLinear` for an adapter; completes the norm if necessary."""
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        base, magnitude = layer.base_layer, layer.lora_magnitude_vector[name].weight
        if norm.value is None:
            norm.add_a(a)
            norm.add_base(base.weight, base.bias)
            norm.add_b(b)
        assert norm.value is not None
        return cls(
            weight=base.weight.detach().to(dtype),
            bias=None if base.bias is None else base.bias.detach().to(dtype),
            a=norm.a_as(a, dtype),
            scaled_b=norm.scaled_b_as(b, dtype),
            scaling=norm.scaling,
            norm=norm.value,
            scale=magnitude.detach() / norm.value,
            backend=layer.backend,
        )


class DoraProduct(torch.autograd.Function):
    """`residual + m / ||W + s B A|| * (W y + s B A d)`, where d is the input after dropout.

    With dropout on the input, y = d and residual = W (x - d) + b; otherwise y = x and residual = b.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        drops_adapter_only: bool,
        a: Tensor,
        b: Tensor,
        magnitude: Tensor,
        constants: Constants,
    ) -> Tensor:
        """x and dropped (None without dropout) are (n, in), the rest as in `Constants`. Returns (n, out)."""
        weight = constants.weight
        is_pair = dropped is not None and not drops_adapter_only
        inner = x if dropped is None else dropped
        hidden = inner @ constants.a.T
        frozen = (dropped if is_pair else x) @ weight.T  # type: ignore[operator]
        # Written into `frozen`: a sum into a new tensor would first copy it. FlopCounterMode does not count addmm_.
        adapted = torch.addmm(frozen, hidden, constants.scaled_b.T, out=frozen)
        # The inputs are subtracted instead of the outputs, which are wider.
        residual = F.linear(x - dropped, weight, constants.bias) if is_pair else constants.bias  # type: ignore[operator]
        ctx.save_for_backward(inner, hidden, adapted)
        ctx.constants, ctx.is_pair, ctx.is_dropped = constants, is_pair, dropped is not None
        ctx.dtypes = a.dtype, b.dtype, magnitude.dtype
        return scaled(adapted, constants.scale, residual, constants.backend)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, dropped, A, B and the magnitude."""
        needs_x, _, _, needs_a, needs_b, needs_magnitude, _ = ctx.needs_input_grad
        inner, hidden, adapted = ctx.saved_tensors
        constants: Constants = ctx.constants
        of_adapted, of_scale = scaled_backward(
            gradient, adapted, constants.scale, (True, needs_magnitude), constants.backend
        )
        assert of_adapted is not None
        of_hidden = of_adapted @ constants.scaled_b
        of_a, of_b, of_magnitude = None, None, None
        if needs_a:
            of_a = (of_hidden.T @ inner).to(ctx.dtypes[0])
        if needs_b:
            product = of_adapted.T @ hidden
            of_b = torch.mul(product, constants.scaling, out=product.new_empty(product.shape, dtype=ctx.dtypes[1]))
        if of_scale is not None:
            of_magnitude = (of_scale / constants.norm).to(ctx.dtypes[2])
        of_x, of_dropped = DoraProduct._of_inputs(ctx, gradient, of_adapted, of_hidden) if needs_x else (None, None)
        return of_x, of_dropped, None, of_a, of_b, of_magnitude, None

    @staticmethod
    def _of_inputs(
        ctx: Any, gradient: Tensor, of_adapted: Tensor, of_hidden: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        constants: Constants = ctx.constants
        of_frozen = of_adapted @ constants.weight
        if not ctx.is_dropped:
            return torch.addmm(of_frozen, of_hidden, constants.a, out=of_frozen), None
        if not ctx.is_pair:
            return of_frozen, of_hidden @ constants.a
        of_x = gradient @ constants.weight
        of_frozen.sub_(of_x)  # first, as `forward_by_modules` does: the order decides what bfloat16 rounds
        return of_x, torch.addmm(of_frozen, of_hidden, constants.a, out=of_frozen)
