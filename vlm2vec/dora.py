"""DoRA linear layers: PEFT's parameters and results at a fraction of PEFT's work.

PEFT recomputes in every call of every adapted layer what changes only with the weights: the norm of the adapted weight,
from a float32 copy of the weight and the product of two full matrices. Here the norm comes from small products, once
per layer within `kept_norms`; the input is not copied to float32; and where no dropout precedes the frozen product,
there is one frozen product instead of two.
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

from vlm2vec.errors import InputError

# Rows of a weight that are in float32 at a time while their norms are computed.
_NORM_ROWS = 4096
DROPOUT_PLACES = ("input", "adapter")


class WeightNorm:
    """Row norms of an adapted weight W + s B A, collected from the modules that hold A, W and B, in this order.

    Under ZeRO-3 a module's parameters are complete only while that module runs, so each module adds its own part:
    `||W + s B A||^2 = ||W||^2 + 2 s rowdot(W A^T, B) + s^2 rowdot(B A A^T, B)`. The norm is a constant for the backward
    pass (DoRA, arXiv 2402.09353, section 4.3).

    Args:
        scaling: s, the adapter's alpha / r.

    Attributes:
        value: The norms, float32 (out_features,); complete after `add_b`.
        bias: The frozen layer's bias (out_features,), or None.
    """

    value: Tensor

    def __init__(self, scaling: float) -> None:
        self.scaling = scaling
        self.bias: Tensor | None = None

    # All of it works on detached tensors; `torch.no_grad` as a decorator would cut compiled code in two here.

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


class _ScaleRows(torch.autograd.Function):
    """`residual + scale * values` in the values' dtype, the scale kept in float32.

    Rounding the scale to bfloat16 would hide every change of a magnitude below 0.4 %; promoting the values to float32,
    as plain operators do, would double the traffic.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, residual: Tensor | None) -> Tensor:
        """values (..., out), scale float32 (out,), residual None, (out,) or like values."""
        ctx.save_for_backward(values, scale)
        ctx.residual_dims = None if residual is None else residual.dim()
        result = torch.empty_like(values)
        if residual is None:
            return torch.mul(values, scale, out=result)
        return torch.addcmul(residual, values, scale, out=result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of values, scale and residual."""
        values, scale = ctx.saved_tensors
        of_values = torch.mul(gradient, scale, out=torch.empty_like(values))
        wide = gradient.to(scale.dtype)
        of_scale = (wide * values).flatten(0, -2).sum(dim=0)
        of_residual = gradient if ctx.residual_dims == values.dim() else None
        if ctx.residual_dims == 1:
            of_residual = wide.flatten(0, -2).sum(dim=0)
        return of_values, of_scale, of_residual


def _scale_rows(values: Tensor, scale: Tensor, residual: Tensor | None) -> Tensor:
    """`_ScaleRows`; in compiled code as plain operators.

    Compiled, these are fused, so that nothing is stored in float32; and torch 2.11 compiles a custom function whose
    result is written into a given tensor without the function's backward, which left the adapter without gradients.
    """
    if not torch.compiler.is_compiling():
        result: Tensor = _ScaleRows.apply(values, scale, residual)  # type: ignore[no-untyped-call]
        return result
    scaled = values * scale
    return (scaled if residual is None else residual + scaled).to(values.dtype)


class _FactorA(nn.Linear):
    """The adapter's A."""

    def forward(self, x: Tensor, norm: WeightNorm | None = None) -> Tensor:
        """A x, (..., r); adds A to `norm`."""
        if norm is not None:
            norm.add_a(self.weight)
        return F.linear(x, self.weight.to(x.dtype))


class _FactorB(nn.Linear):
    """The adapter's B."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, frozen: Tensor, scaling: float, norm: WeightNorm | None = None
    ) -> Tensor:
        """frozen + s B hidden, (..., out), in one product; adds B to `norm`."""
        if norm is not None:
            norm.add_b(self.weight)
        weight = self.weight.to(hidden.dtype)
        result = torch.addmm(frozen.flatten(0, -2), hidden.flatten(0, -2), weight.T, alpha=scaling)
        return result.view_as(frozen)


class _FrozenLinear(nn.Linear):
    """The base model's layer; called by anything but a DoRA layer it is a plain linear layer."""

    def forward(self, x: Tensor, *dropped: Tensor, norm: WeightNorm | None = None, without_bias: bool = False) -> Any:
        """W x + b; with `without_bias` W x, or the pair (W (x - dropped) + b, W dropped); adds W and b to `norm`."""
        if norm is not None:
            norm.add_base(self.weight, self.bias)
        if not without_bias:
            return super().forward(x)
        if dropped:
            # The difference of the inputs instead of the outputs, which are wider.
            return super().forward(x - dropped[0]), F.linear(dropped[0], self.weight)
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
    norm_ahead: bool  # compute the kept norm before the first call; parameters are complete at all times

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
        layer.keeps_norm, layer.kept_norm, layer.norm_ahead = False, None, False

    def compute_norm(self) -> WeightNorm:
        """The norm, outside of a call."""
        (name,) = self.lora_A
        norm = WeightNorm(self.scaling[name])
        norm.add_a(self.lora_A[name].weight)
        norm.add_base(self.base_layer.weight, self.base_layer.bias)
        norm.add_b(self.lora_B[name].weight)
        return norm

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., in) to (..., out), in the dtype of the frozen product."""
        if self.disable_adapters or self.merged:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        (name,) = self.lora_A
        new_norm = WeightNorm(self.scaling[name]) if self.kept_norm is None else None
        dropout = self.lora_dropout[name]
        is_dropped = self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0
        dropped = dropout(x) if is_dropped else x
        # Always the same order of modules, which ZeRO-3 fetches ahead.
        hidden = self.lora_A[name](dropped, norm=new_norm)
        residual: Tensor | None = None
        if is_dropped and not self.drops_adapter_only:
            residual, frozen = self.base_layer(x, dropped, norm=new_norm, without_bias=True)
        else:
            frozen = self.base_layer(x, norm=new_norm, without_bias=True)
        adapted = self.lora_B[name](hidden, frozen, self.scaling[name], norm=new_norm)
        norm = new_norm or self.kept_norm
        assert norm is not None
        if self.keeps_norm:
            self.kept_norm = norm
        scale = self.lora_magnitude_vector[name](norm)
        if residual is None:
            residual = norm.bias
        return _scale_rows(adapted, scale, residual)


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
        layer.keeps_norm = True
        layer.kept_norm = layer.compute_norm() if layer.norm_ahead else None
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps_norm, layer.kept_norm = False, None
