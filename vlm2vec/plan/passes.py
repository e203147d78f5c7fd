"""Measures one engine call: bytes and FLOPs of forward and backward by part, extrapolated to more layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vlm2vec.backbones.interface import ItemProcessor
from vlm2vec.encoder import VLM2Vec
from vlm2vec.plan.meter import TensorMeter

# Parts of a pass. The peak is found per part, because each grows with the layers whose graph is alive in it.
VISION_FORWARD, LANGUAGE_FORWARD, LANGUAGE_BACKWARD, VISION_BACKWARD = range(4)
Parts = tuple[float, float, float, float]
# Arguments that a call without images has too.
_TEXT = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class ChunkShape:
    """One engine call.

    Attributes:
        rows: Number of items, all alike.
        width: Tokens per row, those of its images included.
        image_sizes: Width and height of each image of a row in pixels; empty for text only.
    """

    rows: int
    width: int
    image_sizes: tuple[tuple[int, int], ...] = ()

    def arguments(self, processor: ItemProcessor, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """Blank arguments for the call.

        Args:
            processor: The model's processor.
            dtype: Dtype of the pixels.
            device: Device of the encoder.
        """
        item = processor.blank_item(self.width, self.image_sizes)
        made = processor.collate([item] * self.rows, self.rows * item.vision_units, dtype)
        tensors = {
            # Pixels are on the meta device and have nothing to copy.
            name: torch.zeros_like(each, device=device) if each.is_meta else each.to(device)
            for name, each in made.tensors.items()
        }
        return {**tensors, **made.host_values}


@dataclass(frozen=True)
class PassCost:
    """Bytes and FLOPs of one engine call, without weights and their gradients.

    Attributes:
        pixels: Bytes of its image inputs.
        saved: Bytes alive between forward and backward, the pixels included.
        peaks: Most bytes alive in each part, see `VISION_FORWARD` and the names after it.
        flops: FLOPs of each part.
    """

    pixels: float
    saved: float
    peaks: Parts
    flops: Parts

    @property
    def peak(self) -> float:
        """Most bytes alive at any time."""
        return max(self.peaks)

    @property
    def forward_flops(self) -> float:
        """FLOPs of the forward pass alone."""
        return self.flops[VISION_FORWARD] + self.flops[LANGUAGE_FORWARD]

    def grown(self, other: PassCost, share: float) -> PassCost:
        """Linear interpolation: this cost plus `share` times the difference to `other`."""

        def between(one: float, two: float) -> float:
            return one + share * (two - one)

        def all_between(one: Parts, two: Parts) -> Parts:
            return _four(between(*each) for each in zip(one, two, strict=True))

        return PassCost(
            between(self.pixels, other.pixels),
            between(self.saved, other.saved),
            all_between(self.peaks, other.peaks),
            all_between(self.flops, other.flops),
        )


def _four(values: Iterable[float]) -> Parts:
    vision_forward, language_forward, language_backward, vision_backward = values
    return vision_forward, language_forward, language_backward, vision_backward


def at_depth(cost: Callable[[tuple[int, int]], PassCost], few: tuple[int, int], depths: tuple[int, int]) -> PassCost:
    """Extrapolates the cost of a deep model from shallow ones.

    Saved bytes and FLOPs grow by the same amount with every layer. A part's peak grows with what the layers save whose
    graph is alive in it: while the decoder runs, its layers and the vision tower's; before and after, the tower's.

    Args:
        cost: Cost of a model with the given numbers of decoder and vision tower layers.
        few: Depths of the shallowest model.
        depths: Depths of the full model.
    """
    (language, vision), base = depths, cost(few)
    more_language = cost((few[0] + 1, few[1])) if language > few[0] else base
    more_vision = cost((few[0], few[1] + 1)) if vision > few[1] else base
    deeper = base.grown(more_language, language - few[0])
    vision_added = base.grown(more_vision, vision - few[1])
    saved = deeper.saved + vision_added.saved - base.saved
    flops = _four(
        each + own - least for each, own, least in zip(deeper.flops, vision_added.flops, base.flops, strict=True)
    )
    with_language = saved - more_language.saved
    without = max(0, vision - few[1] - 1) * (more_vision.saved - base.saved)
    peaks = (
        more_vision.peaks[VISION_FORWARD] + without,
        more_language.peaks[LANGUAGE_FORWARD] + with_language,
        more_language.peaks[LANGUAGE_BACKWARD] + with_language,
        more_vision.peaks[VISION_BACKWARD] + without,
    )
    return PassCost(base.pixels, saved, peaks, flops)


def measure(encoder: VLM2Vec, shape: ChunkShape, with_graph: bool, checkpointing: bool) -> PassCost:
    """Measures one call of an encoder, split where the vision tower begins and ends."""
    device = encoder.device
    if checkpointing:
        encoder.gradient_checkpointing_enable()
    else:
        encoder.gradient_checkpointing_disable()
    arguments = shape.arguments(encoder.processor, encoder.base.token_embeddings.dtype, device)
    meter = TensorMeter(device.type)
    meter.ignore([*encoder.parameters(), *encoder.buffers()])
    meter.count(each for name, each in arguments.items() if isinstance(each, Tensor) and name not in _TEXT)
    pixels, parts = meter.alive, _Readings(meter)
    trains_vision = False

    def after_vision(_: Any, __: Any, output: Any) -> None:
        nonlocal trains_vision
        parts.end(VISION_FORWARD)
        for each in tree_leaves(output):
            if isinstance(each, Tensor) and each.requires_grad:
                trains_vision = True
                # The last of these gradients ends the part; the tower's backward pass comes after all of them.
                each.register_hook(lambda _: parts.end(LANGUAGE_BACKWARD))  # type: ignore[no-untyped-call]

    hooks = [module.register_forward_hook(after_vision) for module in encoder.base.vision_modules()]
    with meter, torch.set_grad_enabled(with_graph):
        vectors = encoder(**arguments)
        saved = meter.alive
        parts.end(LANGUAGE_FORWARD)
        if with_graph:
            vectors.sum().backward()
            parts.end(VISION_BACKWARD if trains_vision else LANGUAGE_BACKWARD)
    for hook in hooks:
        hook.remove()
    return PassCost(pixels, saved, _four(parts.peaks), _four(parts.flops))


class _Readings:
    """A meter's readings by part."""

    def __init__(self, meter: TensorMeter) -> None:
        self._meter = meter
        self.peaks = [0, 0, 0, 0]
        self.flops = [0, 0, 0, 0]

    def end(self, part: int) -> None:
        """Assigns what happened since the last call to `part`, which may end several times."""
        self.peaks[part] = max(self.peaks[part], self._meter.peak)
        self.flops[part] += self._meter.flops - sum(self.flops)
        self._meter.reset_peak()
