"""Norms and activations of Qwen-VL's layers with compiled elementwise operators."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.activations import QuickGELUActivation
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from vlm2vec.backbones.compiled import CompiledLayerNorm, CompiledQuickGelu, CompiledRmsNorm


class _Qwen2VLRmsNorm(CompiledRmsNorm, Qwen2VLRMSNorm):
    pass


class _Qwen2_5_VLRmsNorm(CompiledRmsNorm, Qwen2_5_VLRMSNorm):  # noqa: N801
    pass


class _Qwen3VLRmsNorm(CompiledRmsNorm, Qwen3VLTextRMSNorm):
    pass


_KINDS: dict[type[Any], type[Any]] = {
    Qwen2VLRMSNorm: _Qwen2VLRmsNorm,
    Qwen2_5_VLRMSNorm: _Qwen2_5_VLRmsNorm,
    Qwen3VLTextRMSNorm: _Qwen3VLRmsNorm,
    nn.LayerNorm: CompiledLayerNorm,
    QuickGELUActivation: CompiledQuickGelu,
}


def install_compiled(model: nn.Module) -> None:
    """Gives the layers classes with compiled elementwise operators; each has the attribute `backend`."""
    for module in model.modules():
        module.__class__ = _KINDS.get(type(module), type(module))
