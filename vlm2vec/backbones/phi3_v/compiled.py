"""Subclasses of Phi-3's and CLIP's layers with compiled elementwise operators."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.activations import QuickGELUActivation, SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.phi3.modeling_phi3 import Phi3Attention as PlainAttention
from transformers.models.phi3.modeling_phi3 import Phi3MLP, Phi3RMSNorm

from vlm2vec.backbones.compiled import CompiledLayerNorm, CompiledQuickGelu, CompiledRmsNorm
from vlm2vec.elementwise import SWIGLU, Activation, RotatedHeads


class _CompiledRmsNorm(CompiledRmsNorm, Phi3RMSNorm):
    pass


class _CompiledMlp(Phi3MLP):
    backend = ""

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(hidden_states)
        product: Tensor = Activation.apply(gate_up.flatten(0, -2), SWIGLU, self.backend)  # type: ignore[no-untyped-call]
        down: Tensor = self.down_proj(product.view(*gate_up.shape[:-1], -1))
        return down


class _CompiledAttention(PlainAttention):
    backend = ""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        num_heads, num_keys = self.config.num_attention_heads, self.config.num_key_value_heads
        heads = RotatedHeads.apply(  # type: ignore[no-untyped-call]
            self.qkv_proj(hidden_states), *position_embeddings, num_heads, num_keys, False, self.backend
        )
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        dropout = self.attention_dropout if self.training else 0.0
        query, key, value = (each.transpose(1, 2) for each in heads)
        kwargs |= {"dropout": dropout, "scaling": self.scaling, "sliding_window": self.config.sliding_window}
        mixed, weights = attend(self, query, key, value, attention_mask, **kwargs)
        return self.o_proj(mixed.flatten(2)), weights


def install_compiled(model: nn.Module) -> None:
    """Changes the classes of layers to ones with compiled elementwise operators; each has the attribute `backend`.

    Args:
        model: A model with transformers' Phi-3 and CLIP layers.
    """
    for module in model.modules():
        if isinstance(module, CLIPEncoderLayer):
            module.layer_norm1.__class__ = module.layer_norm2.__class__ = CompiledLayerNorm
        module.__class__ = _compiled_kind(module)


def _compiled_kind(module: Any) -> type[nn.Module]:
    """The subclass with compiled operators, or the module's class if there is none that computes the same."""
    kind: type[nn.Module] = type(module)
    if kind is Phi3RMSNorm:
        return _CompiledRmsNorm
    if kind is QuickGELUActivation:
        return CompiledQuickGelu
    if kind is Phi3MLP and isinstance(module.activation_fn, nn.SiLU | SiLUActivation):
        return _CompiledMlp
    # Eager attention uses functions of transformers' module; it is for tests and comparisons.
    if kind is PlainAttention and module.config._attn_implementation != "eager" and _rotates_whole_heads(module):
        return _CompiledAttention
    return kind


def _rotates_whole_heads(attention: Any) -> bool:
    return getattr(attention.config, "partial_rotary_factor", 1.0) == 1.0
