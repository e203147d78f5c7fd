"""Subclasses of Qwen-VL's layers with compiled elementwise operators."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.activations import QuickGELUActivation, SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLAttention,
    Qwen2_5_VLMLP,
    Qwen2_5_VLRMSNorm,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2MLP as Qwen2_5Mlp
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2MLP, Qwen2VLAttention, Qwen2VLRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextAttention, Qwen3VLTextMLP, Qwen3VLTextRMSNorm

from vlm2vec.backbones.compiled import CompiledLayerNorm, CompiledQuickGelu, CompiledRmsNorm
from vlm2vec.backbones.qwen_vl.attention import SpanAttention
from vlm2vec.elementwise import Gated, RotatedHeads, RotatedPair


class _Mlp(nn.Module):
    """MLP of decoder and tower."""

    backend = ""
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., width) to (..., width)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        product: Tensor = Gated.apply(gate.flatten(0, -2), up.flatten(0, -2), self.backend)  # type: ignore[no-untyped-call]
        down: Tensor = self.down_proj(product.view_as(gate))
        return down


class _DecoderAttention(nn.Module):
    backend = ""
    config: Any
    head_dim: int
    scaling: float
    attention_dropout: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes the same as transformers' classes."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key = self.normed(self.q_proj(hidden_states).view(heads), self.k_proj(hidden_states).view(heads))
        value = self.v_proj(hidden_states).view(heads)
        query, key = RotatedPair.apply(query, key, *position_embeddings, self.backend)  # type: ignore[no-untyped-call]
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        result: Tensor = self.o_proj(mixed.flatten(2))
        return result, weights

    def normed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys before rotation, (n, L, heads, d)."""
        return query, key


class _NormedDecoderAttention(_DecoderAttention):
    q_norm: nn.Module
    k_norm: nn.Module

    def normed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises each head."""
        return self.q_norm(query), self.k_norm(key)


class _SpanAttention(SpanAttention):
    backend = ""

    def heads(self, rows: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        qkv, cosines, sines = (each[None] for each in (self.qkv(rows), *position_embeddings))
        parts = RotatedHeads.apply(  # type: ignore[no-untyped-call]
            qkv, cosines, sines, self.num_heads, self.num_heads, True, self.backend
        )
        query, key, value = (each.squeeze(0) for each in parts)
        return query, key, value


class _Qwen2VLRmsNorm(CompiledRmsNorm, Qwen2VLRMSNorm):
    pass


class _Qwen2_5_VLRmsNorm(CompiledRmsNorm, Qwen2_5_VLRMSNorm):  # noqa: N801
    pass


class _Qwen3VLRmsNorm(CompiledRmsNorm, Qwen3VLTextRMSNorm):
    pass


class _Qwen2Mlp(_Mlp, Qwen2MLP):
    pass


class _Qwen2_5Mlp(_Mlp, Qwen2_5Mlp):  # noqa: N801
    pass


class _Qwen2_5TowerMlp(_Mlp, Qwen2_5_VLMLP):  # noqa: N801
    pass


class _Qwen3Mlp(_Mlp, Qwen3VLTextMLP):
    pass


class _Qwen2VLAttention(_DecoderAttention, Qwen2VLAttention):
    pass


class _Qwen2_5_VLAttention(_DecoderAttention, Qwen2_5_VLAttention):  # noqa: N801
    pass


class _Qwen3VLAttention(_NormedDecoderAttention, Qwen3VLTextAttention):
    pass


_KINDS: dict[type[Any], type[Any]] = {
    Qwen2VLRMSNorm: _Qwen2VLRmsNorm,
    Qwen2_5_VLRMSNorm: _Qwen2_5_VLRmsNorm,
    Qwen3VLTextRMSNorm: _Qwen3VLRmsNorm,
    nn.LayerNorm: CompiledLayerNorm,
    QuickGELUActivation: CompiledQuickGelu,
    Qwen2MLP: _Qwen2Mlp,
    Qwen2_5Mlp: _Qwen2_5Mlp,
    Qwen2_5_VLMLP: _Qwen2_5TowerMlp,
    Qwen3VLTextMLP: _Qwen3Mlp,
    Qwen2VLAttention: _Qwen2VLAttention,
    Qwen2_5_VLAttention: _Qwen2_5_VLAttention,
    Qwen3VLTextAttention: _Qwen3VLAttention,
    SpanAttention: _SpanAttention,
}


def install_compiled(model: nn.Module) -> None:
    """Changes the classes of layers to ones with compiled elementwise operators; each has the attribute `backend`."""
    for module in model.modules():
        if _is_as_compiled(module):
            module.__class__ = _KINDS.get(type(module), type(module))


def _is_as_compiled(module: Any) -> bool:
    """Whether the compiled layer computes the same as this one."""
    if issubclass(_KINDS.get(type(module), nn.Module), _Mlp):
        return isinstance(module.act_fn, nn.SiLU | SiLUActivation)
    if issubclass(_KINDS.get(type(module), nn.Module), _DecoderAttention):
        # Eager attention uses functions of transformers' module; it is for tests and comparisons.
        windowed = getattr(module, "sliding_window", None) is not None
        return module.config._attn_implementation != "eager" and not windowed
    return True
