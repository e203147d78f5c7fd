"""DoRA linear layers: PEFT's parameters and results at a fraction of PEFT's work.

PEFT recomputes in every call of every adapted layer what changes only with the weights: the norm of the adapted weight,
from a float32 copy of the weight and the product of two full matrices. Here the norm comes from small products, once
per layer within `kept_norms`; the input is not copied to float32; and where no dropout precedes the frozen product,
there is one frozen product instead of two. Between the products, tensors as wide as the output are read and written as
seldom as eager operators allow: the custom functions here write in place and keep the gradients' sums in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from vlm2vec.elementwise import run, scale_rows, scale_rows_backward
from vlm2vec.errors import InputError

# Rows of a weight that are in float32 at a time while their norms are computed.
_NORM_ROWS = 4096
DROPOUT_PLACES = ("input", "adapter")


class WeightNorm:
    """Row norms of an adapted weight W + s B A, collected from the modules that hold A, W and B, in this order.

    It also keeps A and s B in the dtype of the products, which change as seldom as the norm does.

    Under ZeRO-3 a module's parameters are complete only while that module runs, so each module adds its own part:
    `||W + s B A||^2 = ||W||^2 + 2 s rowdot(W A^T, B) + s^2 rowdot(B A A^T, B)`. The norm is a constant for the backward
    pass (DoRA, arXiv 2402.09353, section 4.3).

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
        """A copy of A, (r, in_features), detached."""
        if dtype not in self._a_as:
            self._a_as[dtype] = weight.detach().to(dtype, copy=True)
        return self._a_as[dtype]

    def scaled_b_as(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of s B, (out_features, r), detached."""
        if dtype not in self._scaled_b_as:
            self._scaled_b_as[dtype] = (self.scaling * weight.detach()).to(dtype)
        return self._scaled_b_as[dtype]

    def add_a(self, weight: Tensor) -> None:
        """Takes A, (r, in_features)."""
        self._a = weight.detach().float().clone()

    def add_base(self, weight: Tensor, bias: Tensor | None) -> None:
        """Takes W, (out_features, in_features), and its bias."""
        squares, products = [], []
        for rows in torch.split(weight.detach(), _NORM_ROWS):
            rows = rows.float()  # no copy where it is float32 already
            squares.append(rows.square().sum(dim=1))
            products.append(_float32_product(rows, self._a.T))
        self._squares, self._products = torch.cat(squares), torch.cat(products)
        self.bias = None if bias is None else bias.detach().clone()

    def add_b(self, weight: Tensor) -> None:
        """Takes B, (out_features, r)."""
        b = weight.detach().float()
        cross = (self._products * b).sum(dim=1)
        quadratic = (_float32_product(b, _float32_product(self._a, self._a.T)) * b).sum(dim=1)
        self.value = (self._squares + 2 * self.scaling * cross + self.scaling**2 * quadratic).clamp_(min=0).sqrt_()
        del self._a, self._squares, self._products


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32: autocast would round both to bfloat16, but for products into a given tensor."""
    return torch.mm(left, right, out=left.new_empty(left.shape[0], right.shape[1]))


class _ProductA(torch.autograd.Function):
    """`x A^T` with A in the dtype of x; its gradient in A's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cast: Tensor) -> Tensor:
        """x (n, in), weight (r, in), cast the same in the dtype of x."""
        ctx.save_for_backward(x, cast)
        ctx.dtype = weight.dtype
        return x @ cast.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of x and A."""
        x, cast = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        return (
            gradient @ cast if needs_x else None,
            (gradient.T @ x).to(ctx.dtype) if needs_weight else None,
            None,
        )


class _AddProductB(torch.autograd.Function):
    """`frozen + hidden (s B)^T`, in the place of `frozen`: a sum into a new tensor would first copy it."""

    @staticmethod
    def forward(ctx: Any, frozen: Tensor, hidden: Tensor, weight: Tensor, scaled: Tensor, scaling: float) -> Tensor:
        """frozen (n, out), hidden (n, r), weight B (out, r), scaled s B in the dtype of hidden."""
        ctx.save_for_backward(hidden, scaled)
        ctx.dtype, ctx.scaling = weight.dtype, scaling
        ctx.mark_dirty(frozen)
        return torch.addmm(frozen, hidden, scaled.T, out=frozen)  # counted by FlopCounterMode, unlike addmm_

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
        """x and dropped (n, in), weight (out, in)."""
        ctx.save_for_backward(weight)
        # The difference of the inputs instead of the outputs, which are wider.
        return F.linear(x - dropped, weight, bias), F.linear(dropped, weight)

    @staticmethod
    def backward(ctx: Any, of_rest: Tensor, of_dropped: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of x and dropped."""
        if not any(ctx.needs_input_grad):
            return None, None, None, None
        (weight,) = ctx.saved_tensors
        weight = weight.to(of_rest.dtype)  # another one only where a float32 base runs under autocast
        of_x = of_rest @ weight
        return of_x, (of_dropped @ weight).sub_(of_x), None, None


class _ScaleRows(torch.autograd.Function):
    """`residual + scale * values` in the values' dtype, the scale kept in float32.

    Rounding the scale to bfloat16 would hide every change of a magnitude below 0.4 %; promoting the values to float32,
    as plain operators do, would double the traffic.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, residual: Tensor | None, backend: str | None) -> Tensor:
        """values (n, out), scale float32 (out,), residual None, (out,) without a gradient, or like values.

        `backend`: of torch.compile; None: operator by operator.
        """
        ctx.save_for_backward(values, scale)
        ctx.backend = backend
        if backend is not None:
            compiled: Tensor = run(scale_rows, backend, values, scale, residual)
            return compiled
        result = torch.empty_like(values)
        if residual is None:
            return torch.mul(values, scale, out=result)
        return torch.addcmul(residual, values, scale, out=result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients of values, scale and residual.

        Operator by operator, the scale's is a sum over all rows in float32 of products in the values' dtype: each is
        rounded once, as its two factors were, and float32 copies of both would be four times the traffic.
        """
        values, scale = ctx.saved_tensors
        needs_values, needs_scale, needs_residual, _ = ctx.needs_input_grad
        of_residual = gradient if needs_residual else None
        if ctx.backend is not None:
            return *run(scale_rows_backward, ctx.backend, gradient, values, scale, needs_values), of_residual, None
        return (
            torch.mul(gradient, scale, out=torch.empty_like(values)) if needs_values else None,
            (gradient * values).sum(dim=0, dtype=scale.dtype) if needs_scale else None,
            of_residual,
            None,
        )


class _FactorA(nn.Linear):
    """The adapter's A."""

    def forward(self, x: Tensor, norm: WeightNorm | None = None) -> Tensor:
        """A x, (n, r); adds A to a `norm` that lacks it."""
        if norm is None:
            return super().forward(x)
        if norm.value is None:
            norm.add_a(self.weight)
        product: Tensor = _ProductA.apply(x, self.weight, norm.a_as(self.weight, x.dtype))  # type: ignore[no-untyped-call]
        return product


class _FactorB(nn.Linear):
    """The adapter's B."""

    def forward(self, hidden: Tensor, frozen: Tensor | None = None, norm: WeightNorm | None = None) -> Tensor:
        """frozen + s B hidden, (n, out), in the place of `frozen`; adds B to a `norm` that lacks it."""
        if norm is None or frozen is None:
            return super().forward(hidden)
        if norm.value is None:
            norm.add_b(self.weight)
        scaled = norm.scaled_b_as(self.weight, hidden.dtype)
        result: Tensor = _AddProductB.apply(frozen, hidden, self.weight, scaled, norm.scaling)  # type: ignore[no-untyped-call]
        return result


class _FrozenLinear(nn.Linear):
    """The base model's layer; called by anything but a DoRA layer it is a plain linear layer."""

    def forward(self, x: Tensor, *dropped: Tensor, norm: WeightNorm | None = None) -> Any:
        """W x + b; for a DoRA layer, which gives `norm`, W x or the pair (W (x - dropped) + b, W dropped).

        Adds W and b to a `norm` that lacks them.
        """
        if norm is None:
            return super().forward(x)
        if norm.value is None:
            norm.add_base(self.weight, self.bias)
        if dropped:
            return _FrozenPair.apply(x, dropped[0], self.weight, self.bias)  # type: ignore[no-untyped-call]
        return F.linear(x, self.weight)


class _Magnitude(DoraLinearLayer):
    """The learned row magnitudes; PEFT's methods still merge them."""

    def forward(self, norm: WeightNorm) -> Tensor:
        """magnitude / norm, float32 (out,)."""
        scale: Tensor = self.weight / norm.value
        return scale


class DoraLinear(PeftLinear):
    """A linear layer with a DoRA adapter: `m / ||W + s B A|| * (W x + s B A x) + b`.

    With dropout on the input, as PEFT has it, the frozen product appears twice:
    `W x + b + (m / ||.|| - 1) W d(x) + m / ||.|| s B A d(x)`. With dropout on the adapter's input alone it is
    `m / ||.|| (W x + s B A d(x)) + b`.

    Made out of PEFT's layer by `install`, not by a constructor.
    """

    drops_adapter_only: bool
    keeps_norm: bool
    kept_norm: WeightNorm | None
    backend: str | None = None  # of torch.compile, for the elementwise operators; None: not compiled

    @classmethod
    def install(cls, layer: PeftLinear, dropout_on: str) -> None:
        """Turns PEFT's layer into this one: the same parameters under the same names, other methods."""
        (name,) = layer.lora_A
        layer.__class__ = cls
        layer.base_layer.__class__ = _FrozenLinear
        layer.lora_A[name].__class__ = _FactorA
        layer.lora_B[name].__class__ = _FactorB
        layer.lora_magnitude_vector[name].__class__ = _Magnitude
        layer.drops_adapter_only = dropout_on == "adapter"
        layer.keeps_norm, layer.kept_norm = False, None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., in) to (..., out), in the dtype of the frozen product."""
        if self.disable_adapters or self.merged:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        (name,) = self.lora_A
        norm = self.kept_norm or WeightNorm(self.scaling[name])
        dropout = self.lora_dropout[name]
        is_dropped = self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0
        leading = x.shape[:-1]
        x = x.to(_product_dtype(x.device, self.base_layer.weight)).flatten(0, -2)
        dropped = dropout(x) if is_dropped else x
        # Always the same order of modules, which ZeRO-3 fetches ahead.
        hidden = self.lora_A[name](dropped, norm=norm)
        if is_dropped and not self.drops_adapter_only:
            residual, frozen = self.base_layer(x, dropped, norm=norm)
        else:
            residual, frozen = None, self.base_layer(x, norm=norm)
        adapted = self.lora_B[name](hidden, frozen, norm=norm)
        if self.keeps_norm:
            self.kept_norm = norm
        scale = self.lora_magnitude_vector[name](norm)
        if residual is None:
            residual = norm.bias
        result: Tensor = _ScaleRows.apply(adapted, scale, residual, self.backend)  # type: ignore[no-untyped-call]
        return result.view(*leading, -1)


def _product_dtype(device: torch.device, weight: Tensor) -> torch.dtype:
    """What autocast rounds inputs of products to, or the frozen weight's dtype: once instead of in each product."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return weight.dtype


def install_dora(adapted: nn.Module, dropout_on: str = "input") -> None:
    """Replaces the methods of PEFT's DoRA layers in a model by this module's; plain LoRA layers stay as they are.

    Args:
        adapted: A PEFT model with one adapter.
        dropout_on: "input" drops the input of the frozen product too, as PEFT and the original do; "adapter" drops
            the adapter's input alone, which saves a frozen product in every call.

    Raises:
        InputError: An unknown `dropout_on`.
    """
    if dropout_on not in DROPOUT_PLACES:
        raise InputError(f"lora_dropout_on {dropout_on!r}: expected one of {', '.join(DROPOUT_PLACES)}")
    layers: list[Any] = [each for each in adapted.modules() if type(each) is PeftLinear]
    for layer in layers:
        if all(layer.use_dora.get(name, False) for name in layer.lora_A) and type(layer.base_layer) is nn.Linear:
            DoraLinear.install(layer, dropout_on)


@contextmanager
def kept_norms(module: nn.Module) -> Iterator[None]:
    """Inside, every DoRA layer computes its norm once: for a block in which no weight changes, such as a step's passes.

    Without it every call computes the norm, so that a changed weight is never missed.
    """
    layers = [each for each in module.modules() if isinstance(each, DoraLinear)]
    for layer in layers:
        layer.keeps_norm, layer.kept_norm = True, None
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps_norm, layer.kept_norm = False, None
