"""The encoder of a run on the meta device: right shapes and dtypes, no weights; and what a pass through it takes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedTokenizerFast
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm2vec.encoder import VLM2Vec
from vlm2vec.phi3_v import Phi3VConfig, Phi3VImageProcessor, Phi3VModel, Phi3VProcessor
from vlm2vec.training.arguments import RunArguments
from vlm2vec.training.build import prepare_encoder
from vlm2vec.training.estimate.meter import TensorMeter
from vlm2vec.training.estimate.states import ModelSize

_ATTENTION = "fused_on_meta"
# Where a pass is cut to find its peak; each part's own peak grows linearly with the number of layers.
VISION_FORWARD, LANGUAGE_FORWARD, LANGUAGE_BACKWARD, VISION_BACKWARD = range(4)
_FEWEST_LAYERS = 2


def _fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What `sdpa` runs on a GPU; on the meta device it would pick the unfused form, which keeps the whole matrix."""
    result = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout, bool(module.is_causal), False, scale=scaling
    )
    return result[0].transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _fused_attention)


class _Autocast(TorchFunctionMode):
    """torch.autocast for the meta device, which has none: the operators of its lists that this model uses.

    https://docs.pytorch.org/docs/stable/amp.html, "CUDA Op-Specific Behavior".
    """

    _LOWER = (F.linear, F.conv2d, torch.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm)
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


@dataclass(frozen=True)
class ChunkShape:
    """One engine call: so many rows of one length, each with so many crops (0: text only)."""

    rows: int
    width: int
    crops: int

    @property
    def tokens(self) -> int:
        """Padded tokens."""
        return self.rows * self.width


@dataclass(frozen=True)
class PassCost:
    """One engine call: bytes and FLOPs, weights and gradients of weights not counted.

    Attributes:
        pixels: Bytes of its crops.
        saved: Bytes alive between forward and backward, the crops included.
        peaks: Most bytes alive in each part, see `VISION_FORWARD` and the names after it.
        flops: FLOPs of each part.
    """

    pixels: float
    saved: float
    peaks: tuple[float, ...]
    flops: tuple[float, ...]

    @property
    def peak(self) -> float:
        """Most bytes alive at a time."""
        return max(self.peaks)

    def as_vector(self) -> NDArray[np.float64]:
        """All figures, for `by_depth`."""
        return np.array([self.pixels, self.saved, *self.peaks, *self.flops])

    @classmethod
    def of_vector(cls, vector: NDArray[np.float64]) -> PassCost:
        """The inverse of `as_vector`."""
        pixels, saved, *rest = vector.tolist()
        return cls(pixels, saved, tuple(rest[:4]), tuple(rest[4:]))


class MetaModel:
    """Builds a run's encoder with any number of layers on the meta device and measures passes through it.

    Layers are alike, so that everything is found with two and three of them and carried on to the real number.

    Args:
        config: The full model.
        arguments: The run's arguments.
        num_crops: Local crops a picture at most.
    """

    def __init__(self, config: Phi3VConfig, arguments: RunArguments, num_crops: int) -> None:
        self.config = config
        self.arguments = arguments
        vision = config.vision_config
        self.images = Phi3VImageProcessor(num_crops, vision.image_size, vision.patch_size)
        self.depths = (int(config.num_hidden_layers), int(vision.num_hidden_layers))
        self._built: dict[tuple[int, int, bool], VLM2Vec] = {}

    def encoder(self, depths: tuple[int, int], checkpointing: bool) -> VLM2Vec:
        """The encoder in training mode, with so many layers of language model and CLIP."""
        key = (*depths, checkpointing)
        if key not in self._built:
            self._built[key] = self._build(depths, checkpointing)
        return self._built[key]

    def by_depth(self, figures: Callable[[tuple[int, int]], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Figures at the full depths, from those of shallow models (depths of language model and CLIP)."""
        (language, vision), few = self.depths, self._few
        base = figures(few)
        total = base.copy()
        for deeper, missing in (((few[0] + 1, few[1]), language - few[0]), ((few[0], few[1] + 1), vision - few[1])):
            if missing:
                total += missing * (figures(deeper) - base)
        return total

    def size(self) -> ModelSize:
        """The parameters at full depth."""

        def count(depths: tuple[int, int]) -> NDArray[np.float64]:
            encoder = self.encoder(depths, False)
            images = encoder.base.model.vision_embed_tokens
            unused = {id(each) for part in images.img_processor.unused_modules() for each in part.parameters()}
            vision = {id(each) for each in images.parameters()} - unused
            totals = np.zeros(4)
            for parameter in encoder.parameters():
                of_vision, runs = id(parameter) in vision, id(parameter) not in unused
                totals += parameter.numel() * np.array([1, parameter.requires_grad, runs and not of_vision, of_vision])
            return totals

        trained = [each for each in self.encoder(self._few, False).parameters() if each.requires_grad]
        total, trainable, language, vision = (round(each) for each in self.by_depth(count).tolist())
        model = self.arguments.model
        return ModelSize(
            total=total,
            trainable=trainable,
            language=language,
            vision=vision,
            largest=max(each.numel() for each in trained),
            trainable_bytes=2 if model.bf16 and not model.lora else 4,
            frozen_bytes=2 if model.bf16 else 4,
        )

    @property
    def _few(self) -> tuple[int, int]:
        """Layers of language model and CLIP in the smallest model; CLIP's last layer is not run."""
        return min(self.depths[0], _FEWEST_LAYERS), min(self.depths[1], _FEWEST_LAYERS + 1)

    def cost(self, shape: ChunkShape, with_graph: bool, checkpointing: bool = False) -> PassCost:
        """What one call takes: forward and backward, or forward alone without a graph."""
        return PassCost.of_vector(
            self.by_depth(lambda depths: measure(self.encoder(depths, checkpointing), shape, with_graph))
        )

    def _build(self, depths: tuple[int, int], checkpointing: bool) -> VLM2Vec:
        config = copy.deepcopy(self.config)
        config.num_hidden_layers, config.vision_config.num_hidden_layers = depths
        chosen = self.arguments.model.attn_implementation
        config._attn_implementation = chosen if chosen == "eager" else _ATTENTION
        model = self.arguments.model
        with torch.device("meta"):
            backbone = Phi3VModel(config).to(torch.bfloat16 if model.bf16 else torch.float32)
            blank = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
            encoder = prepare_encoder(
                VLM2Vec(backbone, Phi3VProcessor(blank, self.images), model.max_len), self.arguments, checkpointing
            )
        for parameter in encoder.parameters():
            if parameter.requires_grad:  # gradients of weights are the engine's business, and counted with it
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        if model.lora and model.bf16:  # float32 adapters on a bfloat16 base run under autocast
            layers = [each for each in encoder.modules() if isinstance(each, GradientCheckpointingLayer)]
            for module in (encoder, *(part for layer in layers for part in layer.children())):
                _run_under_autocast(module)
        return encoder


def _run_under_autocast(module: nn.Module) -> None:
    """Parts of layers too, although the encoder holds them: recomputed, they run outside of its forward."""
    forward = module.forward

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with _Autocast():
            return forward(*args, **kwargs)

    module.forward = under_autocast


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def measure(encoder: VLM2Vec, shape: ChunkShape, with_graph: bool) -> NDArray[np.float64]:
    """One call through an encoder, cut where the vision tower begins and ends; see `PassCost.as_vector`."""
    device = encoder.device
    ids = torch.full((shape.rows, shape.width), -1 if shape.crops else 1, device=device)
    pictures: dict[str, Any] = {}
    images = encoder.base.model.vision_embed_tokens
    if shape.crops:
        dtype = next(iter(images.parameters())).dtype
        size = images.crop_size
        pictures["pixel_values"] = torch.zeros(shape.rows * shape.crops, 3, size, size, dtype=dtype, device=device)
        pictures["image_sizes"] = torch.tensor([[size, size * (shape.crops - 1)]] * shape.rows)
    meter = TensorMeter(device.type)
    meter.ignore([*encoder.parameters(), *encoder.buffers()])
    meter.count(value for value in pictures.values())
    pixels = meter.alive
    parts = [[0.0, 0.0] for _ in range(4)]

    def end_of(part: int, next_part: int) -> Callable[..., None]:
        def note(*_: Any) -> None:
            parts[part][0] = max(parts[part][0], meter.peak)
            parts[part][1] += meter.flops - sum(flops for _, flops in parts)
            meter.reset_peak()

        return note

    hooks = [images.register_forward_hook(end_of(VISION_FORWARD, LANGUAGE_FORWARD))]
    if with_graph and any(each.requires_grad for each in images.parameters()) and shape.crops:
        hooks.append(images.register_full_backward_pre_hook(end_of(LANGUAGE_BACKWARD, VISION_BACKWARD)))
    with meter, torch.set_grad_enabled(with_graph):
        vectors = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), **pictures)
        saved = meter.alive
        end_of(LANGUAGE_FORWARD, LANGUAGE_BACKWARD)()
        if with_graph:
            vectors.sum().backward()
            end_of(VISION_BACKWARD if len(hooks) > 1 else LANGUAGE_BACKWARD, VISION_FORWARD)()
    for hook in hooks:
        hook.remove()
    return np.array([pixels, saved, *(peak for peak, _ in parts), *(flops for _, flops in parts)])
