"""Elementwise operators (norms, activations, rotary embedding) as compiled functions: one read and write per tensor.

Forward and backward are compiled separately, inside a custom autograd function that decides what is saved. So a layer
that runs again (gradient checkpointing) or without a graph (pass 1) runs the same code and gives the same bits, and
all layers of one width share a graph. Arithmetic is in float32 and rounded once, at the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

# Most graphs of one function: one per width, in training and in evaluation, and one for a single row.
_MOST_GRAPHS = 64
_QUICK_GELU = 1.702


def run(function: Callable[..., Any], backend: str, *arguments: Any) -> Any:
    """Runs a compiled function on any number of rows; the last dimension is static, which allows vectorised loads."""
    return _compiled(function, backend)(*(_any_rows(each) for each in arguments))


@cache
def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    limit: dict[str, Any] = {"recompile_limit": _MOST_GRAPHS}
    # Before torch 2.12 the limit is a setting of the whole process.
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)
        limit = {}
    # Not dynamic: only the dimensions that `_any_rows` marks may vary within a graph.
    compiled: Callable[..., Any] = torch.compile(function, backend=backend, dynamic=False, **limit)
    return compiled


def _any_rows(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    argument = argument.detach()
    for dimension in range(min(argument.dim() - 1, 2)):  # (rows, width), or (images or texts, tokens, width)
        torch._dynamo.maybe_mark_dynamic(argument, dimension)
    return argument


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`weight * x / rms(x)` over the last dimension; the quotient is rounded to x's dtype."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * normed.to(x.dtype)


def rms_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, epsilon: float, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and weight; all (n, width) but the weight."""
    wide, incoming = x.float(), gradient.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    normed = wide * inverse
    of_normed = incoming * weight.float()
    of_x = inverse * (of_normed - normed * (of_normed * normed).mean(-1, keepdim=True))
    of_weight = (incoming * normed.to(x.dtype).float()).sum(0).to(weight.dtype) if needs_weight else None
    return of_x.to(x.dtype), of_weight


class RmsNorm(torch.autograd.Function):
    """`rms_norm` of (n, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, backend: str) -> Tensor:
        """Returns (n, width) in the dtype of `x * weight`."""
        ctx.save_for_backward(x, weight)
        ctx.epsilon, ctx.backend = epsilon, backend
        result: Tensor = run(rms_norm, backend, x, weight, epsilon)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and weight."""
        x, weight = ctx.saved_tensors
        gradients = run(rms_norm_backward, ctx.backend, gradient, x, weight, ctx.epsilon, ctx.needs_input_grad[1])
        return *gradients, None, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """torch's layer norm, computed in float32 and returned in `dtype`."""
    return F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), epsilon).to(dtype)


def layer_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, epsilon: float, needs_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias; all (n, width) but the last two."""
    wide, incoming = x.float(), gradient.float()
    centred = wide - wide.mean(-1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon)
    normed = centred * inverse
    of_normed = incoming * weight.float()
    of_x = of_normed - of_normed.mean(-1, keepdim=True) - normed * (of_normed * normed).mean(-1, keepdim=True)
    of_weight = of_bias = None
    if needs_weight:
        of_weight, of_bias = (incoming * normed).sum(0).to(weight.dtype), incoming.sum(0).to(weight.dtype)
    return (inverse * of_x).to(x.dtype), of_weight, of_bias


class LayerNorm(torch.autograd.Function):
    """`layer_norm` of (n, width)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype, backend: str
    ) -> Tensor:
        """Returns (n, width) in `dtype`."""
        ctx.save_for_backward(x, weight)
        ctx.epsilon, ctx.backend = epsilon, backend
        result: Tensor = run(layer_norm, backend, x, weight, bias, epsilon, dtype)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        gradients = run(layer_norm_backward, ctx.backend, gradient, x, weight, ctx.epsilon, ctx.needs_input_grad[1])
        return *gradients, None, None, None


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of (n, 2 width)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def swiglu_backward(gradient: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient of (n, 2 width)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    incoming, sigmoid = gradient.float(), torch.sigmoid(gate)
    of_gate = incoming * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([of_gate, incoming * gate * sigmoid], dim=-1).to(gate_up.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, both (n, width)."""
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


def gated_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    incoming, wide = gradient.float(), gate.float()
    sigmoid = torch.sigmoid(wide)
    of_gate = incoming * up.float() * sigmoid * (1 + wide * (1 - sigmoid))
    return of_gate.to(gate.dtype), (incoming * wide * sigmoid).to(up.dtype)


class Gated(torch.autograd.Function):
    """SwiGLU whose gate and up projections are two matrix products."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, backend: str) -> Tensor:
        """gate and up have shape (n, width)."""
        ctx.save_for_backward(gate, up)
        ctx.backend = backend
        result: Tensor = run(gated, backend, gate, up)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of gate and up."""
        return *run(gated_backward, ctx.backend, gradient, *ctx.saved_tensors), None


def quick_gelu(x: Tensor) -> Tensor:
    """`x sigmoid(1.702 x)`, the quick approximation of GELU."""
    wide = x.float()
    return (wide * torch.sigmoid(_QUICK_GELU * wide)).to(x.dtype)


def quick_gelu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of x."""
    wide = x.float()
    sigmoid = torch.sigmoid(_QUICK_GELU * wide)
    return (gradient.float() * sigmoid * (1 + _QUICK_GELU * wide * (1 - sigmoid))).to(x.dtype)


# A function of rows, and its derivative: (gradient of the output, input) -> gradient of the input.
SWIGLU = (swiglu, swiglu_backward)
QUICK_GELU = (quick_gelu, quick_gelu_backward)


class Activation(torch.autograd.Function):
    """`SWIGLU` or `QUICK_GELU`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: tuple[Callable[..., Tensor], Callable[..., Tensor]], backend: str) -> Tensor:
        """x has shape (n, width), for SwiGLU (n, 2 width)."""
        ctx.save_for_backward(x)
        function, ctx.derivative = kind
        ctx.backend = backend
        result: Tensor = run(function, backend, x)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of x."""
        return run(ctx.derivative, ctx.backend, gradient, *ctx.saved_tensors), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int = 1, is_signed: bool = False) -> Tensor:
    """Rotates x (n, L, heads, d) by the angles of cos and sin (1 or n, L, d) in float32; with sign -1 back.

    `is_signed`: the first half of sin is already negated.
    """
    wide, cosines, sines = x.float(), cos[:, :, None].float(), sign * sin[:, :, None].float()
    (first, second), (of_first, of_second) = wide.chunk(2, dim=-1), sines.chunk(2, dim=-1)
    of_first = of_first if is_signed else -of_first
    return (wide * cosines + torch.cat([second * of_first, first * of_second], dim=-1)).to(x.dtype)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, num_rotated: int, is_signed: bool) -> Tensor:
    """Rotary position embedding of the first heads, queries and keys, of (n, L, heads x d)."""
    texts, tokens, _ = qkv.shape
    heads = qkv[..., : num_rotated * cos.shape[-1]].reshape(texts, tokens, num_rotated, cos.shape[-1])
    return _rotated(heads, cos, sin, is_signed=is_signed)


def rotate_backward(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, is_signed: bool) -> Tensor:
    """Gradient of qkv from gradients (n, L, heads, d). Both halves of sin are equal, so it is the inverse rotation."""
    parts = [_rotated(each, cos, sin, -1, is_signed) for each in (query, key)]
    return torch.cat([each.flatten(2) for each in (*parts, value)], dim=-1)


class RotatedHeads(torch.autograd.Function):
    """Splits one qkv product into rotated queries, rotated keys and values, each (n, L, heads, d)."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int, num_keys: int, is_signed: bool, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """qkv is (n, L, (num_heads + 2 num_keys) d), cos and sin are (1 or n, L, d); is_signed: see `_rotated`."""
        ctx.save_for_backward(cos, sin)
        ctx.is_signed, ctx.backend = is_signed, backend
        rotated = run(rotate, backend, qkv, cos, sin, num_heads + num_keys, is_signed)
        query, key = rotated.split([num_heads, num_keys], dim=2)
        value = qkv[..., -num_keys * cos.shape[-1] :].view(*qkv.shape[:2], num_keys, -1)
        return query, key, value

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of qkv."""
        gradient = run(rotate_backward, ctx.backend, query, key, value, *ctx.saved_tensors, ctx.is_signed)
        return gradient, None, None, None, None, None, None


def rotate_pair(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding of queries and keys (n, L, heads, d)."""
    return _rotated(query, cos, sin), _rotated(key, cos, sin)


def rotate_pair_backward(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys, from those of the rotated ones."""
    return _rotated(query, cos, sin, -1), _rotated(key, cos, sin, -1)


class RotatedPair(torch.autograd.Function):
    """Rotates queries and keys of separate products, each (n, L, heads, d)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        """cos and sin are (1 or n, L, d)."""
        ctx.save_for_backward(cos, sin)
        ctx.backend = backend
        rotated: tuple[Tensor, Tensor] = run(rotate_pair, backend, query, key, cos, sin)
        return rotated

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Gradients of queries and keys."""
        return *run(rotate_pair_backward, ctx.backend, query, key, *ctx.saved_tensors), None, None, None


def scale_rows(values: Tensor, scale: Tensor, residual: Tensor | None) -> Tensor:
    """`residual + scale * values` of (n, width), scale (width,) in float32; residual None, (width,) or (n, width)."""
    scaled = values.float() * scale
    return (scaled if residual is None else residual.float() + scaled).to(values.dtype)


def scale_rows_backward(
    gradient: Tensor, values: Tensor, scale: Tensor, needs_values: bool
) -> tuple[Tensor | None, Tensor]:
    """Gradients of values and scale."""
    incoming = gradient.float()
    of_values = (incoming * scale).to(values.dtype) if needs_values else None
    return of_values, (incoming * values.float()).sum(0).to(scale.dtype)
