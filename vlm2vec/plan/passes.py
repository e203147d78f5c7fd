"""One engine call, measured: bytes and FLOPs of forward and backward, part by part, and carried on to more layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm2vec.encoder import VLM2Vec
from vlm2vec.plan.meter import TensorMeter

# Where a pass is cut to find its peak: each part's own peak grows with the layers whose graph lives then.
VISION_FORWARD, LANGUAGE_FORWARD, LANGUAGE_BACKWARD, VISION_BACKWARD = range(4)
Parts = tuple[float, float, float, float]


@dataclass(frozen=True)
class ChunkShape:
    """One engine call: so many rows of one length, each with so many crops (0: text only)."""

    rows: int
    width: int
    crops: int


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
    peaks: Parts
    flops: Parts

    @property
    def peak(self) -> float:
        """Most bytes alive at a time."""
        return max(self.peaks)

    @property
    def forward_flops(self) -> float:
        """Of the forward pass alone."""
        return self.flops[VISION_FORWARD] + self.flops[LANGUAGE_FORWARD]

    def grown(self, other: PassCost, share: float) -> PassCost:
        """This cost plus `share` times the way to another one."""

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
    """The cost of a deep model from those of shallow ones.

    What is saved and FLOPs grow by the same with every layer. A part's peak grows by what the layers save whose graph
    lives in it: while the language model runs, both towers' layers; before and after, CLIP's.

    Args:
        cost: Of a model with so many layers of language model and CLIP.
        few: The depths of the shallowest model.
        depths: The depths asked for.
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
    """One call through an encoder, cut where the vision tower begins and ends."""
    device = encoder.device
    if checkpointing:
        encoder.gradient_checkpointing_enable()
    else:
        encoder.base.gradient_checkpointing_disable()
    ids = torch.full((shape.rows, shape.width), -1 if shape.crops else 1, device=device)
    image_arguments: dict[str, Any] = {}
    vision = encoder.base.model.vision_embed_tokens
    if shape.crops:
        dtype = next(iter(vision.parameters())).dtype
        size = vision.crop_size
        image_arguments["pixel_values"] = torch.zeros(
            shape.rows * shape.crops, 3, size, size, dtype=dtype, device=device
        )
        image_arguments["image_sizes"] = torch.tensor([[size, size * (shape.crops - 1)]] * shape.rows)
    meter = TensorMeter(device.type)
    meter.ignore([*encoder.parameters(), *encoder.buffers()])
    meter.count(image_arguments.values())
    pixels, parts = meter.alive, _Readings(meter)
    trains_vision = False

    def after_vision(_: Any, __: Any, features: Tensor) -> None:
        nonlocal trains_vision
        parts.end(VISION_FORWARD)
        trains_vision = features.requires_grad
        if trains_vision:
            features.register_hook(lambda _: parts.end(LANGUAGE_BACKWARD))  # type: ignore[no-untyped-call]

    hook = vision.register_forward_hook(after_vision)
    with meter, torch.set_grad_enabled(with_graph):
        vectors = encoder(input_ids=ids, attention_mask=torch.ones_like(ids), **image_arguments)
        saved = meter.alive
        parts.end(LANGUAGE_FORWARD)
        if with_graph:
            vectors.sum().backward()
            parts.end(VISION_BACKWARD if trains_vision else LANGUAGE_BACKWARD)
    hook.remove()
    return PassCost(pixels, saved, _four(parts.peaks), _four(parts.flops))


class _Readings:
    """A meter's readings, part by part."""

    def __init__(self, meter: TensorMeter) -> None:
        self._meter = meter
        self.peaks = [0, 0, 0, 0]
        self.flops = [0, 0, 0, 0]

    def end(self, part: int) -> None:
        """What happened since the last part's end belongs to `part`."""
        self.peaks[part] = self._meter.peak
        self.flops[part] = self._meter.flops - sum(self.flops)
        self._meter.reset_peak()
