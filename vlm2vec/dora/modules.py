"""Runs a DoRA layer module by module, for ZeRO-3, where parameters are complete only while their module runs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor, nn

from vlm2vec.dora.norm import WeightNorm
from vlm2vec.dora.scaling import scaled, scaled_backward


class _ProductA(torch.autograd.Function):
    """The pair `x A^T`, x, with A cast to the dtype of x; A's gradient is in A's dtype.

    The frozen product reads the second result, so that its gradient arrives here and is added as `DoraProduct` adds it.
    Autograd would add two gradients that are rounded already, which makes a bfloat16 update depend on the ZeRO stage.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cast: Tensor) -> tuple[Tensor, Tensor]:
        """x is (n, in), weight is A (r, in), cast is A in the dtype of x."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, cast)
        ctx.dtype = weight.dtype
        return x @ cast.T, x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_x: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of x and A."""
        x, cast = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        if needs_x:
            of_x = gradient @ cast if of_x is None else torch.addmm(of_x, gradient, cast)
        return of_x, (gradient.T @ x).to(ctx.dtype) if needs_weight else None, None


class _AddProductB(torch.autograd.Function):
    """`frozen + hidden (s B)^T`, written into `frozen`: a sum into a new tensor would first copy it."""

    @staticmethod
    def forward(ctx: Any, frozen: Tensor, hidden: Tensor, weight: Tensor, scaled: Tensor, scaling: float) -> Tensor:
        """frozen is (n, out), hidden (n, r), weight is B (out, r), scaled is s B in the dtype of hidden."""
        ctx.save_for_backward(hidden, scaled)
        ctx.dtype, ctx.scaling = weight.dtype, scaling
        ctx.mark_dirty(frozen)
        return torch.addmm(frozen, hidden, scaled.T, out=frozen)  # FlopCounterMode counts this, but not addmm_

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Gradients of frozen, hidden and B."""
        hidden, scaled = ctx.saved_tensors
        needs_frozen, needs_hidden, needs_weight, _, _ = ctx.needs_input_grad
        return (
            gradient if needs_frozen else None,
            gradient @ scaled if needs_hidden else None,
            (gradient.T @ hidden).to(ctx.dtype).mul_(ctx.scaling) if needs_weight else None,
            None,
            None,
        )


class _FrozenPair(torch.autograd.Function):
    """The pair `W (x - dropped) + b`, `W dropped`; W and b get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """x and dropped are (n, in), weight is (out, in)."""
        ctx.save_for_backward(weight)
        # The inputs are subtracted instead of the outputs, which are wider.
        return F.linear(x - dropped, weight, bias), F.linear(dropped, weight)

    @staticmethod
    def backward(ctx: Any, of_rest: Tensor, of_dropped: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of x and dropped."""
        if not any(ctx.needs_input_grad):
            return None, None, None, None
        (weight,) = ctx.saved_tensors
        weight = weight.to(of_rest.dtype)  # the dtypes differ only if a float32 base runs under autocast
        of_x = of_rest @ weight
        return of_x, (of_dropped @ weight).sub_(of_x), None, None


class _ScaleRows(torch.autograd.Function):
    """`residual + scale * values`, see `scaled`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, residual: Tensor | None, backend: str | None) -> Tensor:
        """values is (n, out), scale float32 (out,), residual None, (out,) without a gradient, or (n, out)."""
        ctx.save_for_backward(values, scale)
        ctx.backend = backend
        return scaled(values, scale, residual, backend)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients of values, scale and residual."""
        values, scale = ctx.saved_tensors
        needs_values, needs_scale, needs_residual, _ = ctx.needs_input_grad
        gradients = scaled_backward(gradient, values, scale, (needs_values, needs_scale), ctx.backend)
        return *gradients, gradient if needs_residual else None, None


class FactorA(nn.Linear):
    """The adapter's A, which also adds its part of the norm."""

    def forward(self, x: Tensor, norm: WeightNorm | None = None) -> Any:
        """Returns A x, (n, r); with a `norm`, which it adds A to if it is incomplete, the pair A x, x."""
        if norm is None:
            return super().forward(x)
        if norm.value is None:
            norm.add_a(self.weight)
        return _ProductA.apply(x, self.weight, norm.a_as(self.weight, x.dtype))  # type: ignore[no-untyped-call]


class FactorB(nn.Linear):
    """The adapter's B, which also completes the norm."""

    def forward(self, hidden: Tensor, frozen: Tensor | None = None, norm: WeightNorm | None = None) -> Tensor:
        """Returns frozen + s B hidden, (n, out), written into `frozen`; adds B to an incomplete `norm`."""
        if norm is None or frozen is None:
            return super().forward(hidden)
        if norm.value is None:
            norm.add_b(self.weight)
        scaled = norm.scaled_b_as(self.weight, hidden.dtype)
        result: Tensor = _AddProductB.apply(frozen, hidden, self.weight, scaled, norm.scaling)  # type: ignore[no-untyped-call]
        return result


class FrozenLinear(nn.Linear):
    """The base model's layer; a plain linear layer unless a DoRA layer calls it."""

    def forward(self, x: Tensor, *dropped: Tensor, norm: WeightNorm | None = None) -> Any:
        """Returns W x + b; for a DoRA layer, which passes `norm`, W x or the pair (W (x - dropped) + b, W dropped).

        Adds W and b to an incomplete `norm`.
        """
        if norm is None:
            return super().forward(x)
        if norm.value is None:
            norm.add_base(self.weight, self.bias)
        if dropped:
            return _FrozenPair.apply(x, dropped[0], self.weight, self.bias)  # type: ignore[no-untyped-call]
        return F.linear(x, self.weight)


class Magnitude(DoraLinearLayer):
    """The learned row magnitudes; merging still uses PEFT's methods."""

    def forward(self, norm: WeightNorm) -> Tensor:
        """Returns magnitude / norm, float32 (out,)."""
        scale: Tensor = self.weight / norm.value
        return scale


def forward_by_modules(
    layer: Any, name: str, x: Tensor, dropped: Tensor | None, norm: WeightNorm, backend: str | None
) -> Tensor:
    """Computes the same as `DoraProduct`, module by module in a fixed order, which ZeRO-3's prefetch relies on.

    Args:
        layer: A `DoraLinear`.
        name: Name of its adapter.
        x: The input (n, in), in the dtype of the products.
        dropped: x after dropout; None without dropout.
        norm: Norm of the adapted weight; if it is incomplete, the modules add their parts.
        backend: torch.compile's backend for the elementwise operators; None: not compiled.

    Returns:
        The result, (n, out).
    """
    hidden, inner = layer.lora_A[name](x if dropped is None else dropped, norm=norm)
    if dropped is None:
        residual, frozen = None, layer.base_layer(inner, norm=norm)
    elif layer.drops_adapter_only:
        residual, frozen = None, layer.base_layer(x, norm=norm)
    else:
        residual, frozen = layer.base_layer(x, inner, norm=norm)
    adapted = layer.lora_B[name](hidden, frozen, norm=norm)
    scale = layer.lora_magnitude_vector[name](norm)
    if residual is None:
        residual = norm.bias
    result: Tensor = _ScaleRows.apply(adapted, scale, residual, backend)  # type: ignore[no-untyped-call]
    return result
