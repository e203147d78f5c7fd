"""Builds a run's encoder on the meta device (shapes and dtypes, no weights) and measures passes through it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm2vec.backbones.interface import ItemProcessor
from vlm2vec.backbones.registry import family_of_config
from vlm2vec.encoder import VLM2Vec
from vlm2vec.plan.passes import ChunkShape, PassCost, at_depth, measure
from vlm2vec.plan.states import ModelSize
from vlm2vec.training.encoder import prepare_encoder
from vlm2vec.training.settings import EncoderSettings

_ATTENTION = "fused_on_meta"


def _fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Flash attention, which `sdpa` runs on a GPU; on the meta device it would run the unfused form instead."""
    causal = bool(module.is_causal if is_causal is None else is_causal)
    result = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout, causal, False, scale=scaling
    )
    return result[0].transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _fused_attention)


class _Autocast(TorchFunctionMode):
    """torch.autocast for the meta device, which lacks it: the operators of autocast's lists that our models use.

    https://docs.pytorch.org/docs/stable/amp.html, "CUDA Op-Specific Behavior".
    """

    _LOWER = (F.linear, torch.addmm, F.conv2d, torch.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm)
    _FLOAT32 = (F.layer_norm, F.softmax, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, torch.linalg.norm)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        dtype = torch.bfloat16 if func in self._LOWER else torch.float32 if func in self._FLOAT32 else None
        kwargs = kwargs or {}
        if dtype is not None:
            args = tuple(_cast(each, dtype) for each in args)
            kwargs = {name: _cast(each, dtype) for name, each in kwargs.items()}
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class MetaModel:
    """Builds a run's encoder with any number of layers on the meta device and measures passes through it.

    All layers are alike, so costs are measured with the fewest layers and with one more, then extrapolated.

    Args:
        config: Configuration of the full model.
        settings: Encoder settings of the run.
        processor: The model's processor; it needs no tokenizer (`ItemProcessor.without_tokenizer`).

    Raises:
        InputError: The configuration belongs to no known model family.
    """

    def __init__(self, config: PreTrainedConfig, settings: EncoderSettings, processor: ItemProcessor) -> None:
        self.config = config
        self.settings = settings
        self.processor = processor
        self.family = family_of_config(config)
        self.depths = self.family.backbone.depths(config)
        self._built: dict[tuple[int, int], VLM2Vec] = {}
        self._costs: dict[tuple[ChunkShape, bool, bool], PassCost] = {}

    def without_dropout(self) -> MetaModel:
        """The same model with dropout 0 in its adapters."""
        lora = self.settings.lora
        if lora is None or lora.dropout == 0:
            return self
        plain = dataclasses.replace(lora, dropout=0.0, dropout_on="input")
        return MetaModel(self.config, dataclasses.replace(self.settings, lora=plain), self.processor)

    def encoder(self, depths: tuple[int, int]) -> VLM2Vec:
        """The encoder in training mode, with the given numbers of decoder and vision tower layers."""
        if depths not in self._built:
            self._built[depths] = self._build(depths)
        return self._built[depths]

    @property
    def smallest(self) -> VLM2Vec:
        """The encoder with the fewest layers that are built."""
        return self.encoder(self._few)

    def size(self) -> ModelSize:
        """Parameters at full depth."""

        def count(depths: tuple[int, int]) -> npt.NDArray[np.int64]:
            encoder = self.encoder(depths)
            unused = {id(each) for part in encoder.base.unused_modules() for each in part.parameters()}
            vision = {id(each) for part in encoder.base.vision_modules() for each in part.parameters()} - unused
            totals = np.zeros(4, dtype=np.int64)
            for parameter in encoder.parameters():
                of_vision, runs = id(parameter) in vision, id(parameter) not in unused
                totals += parameter.numel() * np.array([1, parameter.requires_grad, runs and not of_vision, of_vision])
            return totals

        few, (decoder, vision) = self._few, self.depths
        counted = base = count(few)
        if decoder > few[0]:
            counted = counted + (decoder - few[0]) * (count((few[0] + 1, few[1])) - base)
        if vision > few[1]:
            counted = counted + (vision - few[1]) * (count((few[0], few[1] + 1)) - base)
        trained = [each for each in self.smallest.parameters() if each.requires_grad]
        precision = self.settings.precision
        return ModelSize(
            total=int(counted[0]),
            trainable=int(counted[1]),
            language=int(counted[2]),
            vision=int(counted[3]),
            largest=max(each.numel() for each in trained),
            trainable_bytes=precision.weights.itemsize,
            frozen_bytes=precision.frozen.itemsize,
        )

    @property
    def _few(self) -> tuple[int, int]:
        """Layers of decoder and vision tower in the smallest model."""
        fewest = self.family.backbone.fewest_depths
        return min(self.depths[0], fewest[0]), min(self.depths[1], fewest[1])

    def cost(self, shape: ChunkShape, with_graph: bool, checkpointing: bool = False) -> PassCost:
        """Cost of one call: forward and backward, or without a graph forward alone."""
        key = (shape, with_graph, checkpointing)
        if key not in self._costs:

            def shallow(depths: tuple[int, int]) -> PassCost:
                return measure(self.encoder(depths), shape, with_graph, checkpointing)

            vision = self.depths[1] if shape.image_sizes else self._few[1]
            self._costs[key] = at_depth(shallow, self._few, (self.depths[0], vision))
        return self._costs[key]

    def _build(self, depths: tuple[int, int]) -> VLM2Vec:
        config = self.family.backbone.with_depths(self.config, *depths)
        chosen = self.settings.attn_implementation
        config._attn_implementation = chosen if chosen == "eager" else _ATTENTION
        precision = self.settings.precision
        with torch.device("meta"):
            backbone = self.family.backbone(config).to(precision.frozen)
            encoder = prepare_encoder(
                VLM2Vec(backbone, self.processor, self.settings.max_len), self.settings, gradient_checkpointing=False
            )
        for parameter in encoder.parameters():
            if parameter.requires_grad:  # `StateMemory` counts the gradients of weights
                parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
        if precision.autocast:  # float32 adapters on a bfloat16 base run under autocast
            encoder.autocast = _Autocast  # type: ignore[method-assign]
            layers = [each for each in encoder.modules() if isinstance(each, GradientCheckpointingLayer)]
            for module in (part for layer in layers for part in layer.children()):
                _run_under_autocast(module)
        return encoder


def _run_under_autocast(module: nn.Module) -> None:
    """Runs a part of a layer under autocast: recomputed, it runs outside the encoder's forward and its autocast."""
    forward = module.forward

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with _Autocast():
            return forward(*args, **kwargs)

    module.forward = under_autocast


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
