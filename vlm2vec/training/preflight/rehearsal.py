"""Runs the largest chunk forward and backward before the first step, so that what does not fit fails early."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from vlm2vec.batches import ChunkSizes
from vlm2vec.contrastive import CachedStep, Chunk
from vlm2vec.contrastive.reduction import gradient_reduction
from vlm2vec.contrastive.watch import Part, Place, Watch
from vlm2vec.inputs.encoder_inputs import ItemEncoderInputs
from vlm2vec.inputs.packing import TokenBudget
from vlm2vec.training.preflight.graph_memory import LEFT_FREE, DeviceMemory, largest_chunk

# Chunks with 1/8 and 1/4 of the largest one's images are measured first, to predict what fits if that one does not.
_PARTS = (8, 4)
_PASS_1 = Place(Part.PASS_1, "pass 1, the largest chunk")
_PASS_2 = Place(Part.PASS_2, "pass 2, the largest chunk")


class _RehearsedError(Exception):
    """Leaves the context of the gradient reduction without reducing anything."""


@dataclass(frozen=True)
class ChunkMemory:
    """Memory of a chunk as a linear function of its tokens, through two measurements.

    Attributes:
        fixed: Bytes of a chunk of any size.
        a_token: Bytes per token of the chunk's budget.
        free: Bytes available to a chunk.
    """

    fixed: float
    a_token: float
    free: float

    @classmethod
    def through(cls, small: tuple[int, int], large: tuple[int, int], free: float) -> ChunkMemory:
        """The line through two measurements (tokens, bytes)."""
        (few, less), (many, more) = small, large
        a_token = (more - less) / (many - few) if many > few and more > less else more / many
        return cls(max(0.0, more - a_token * many), a_token, free)

    @property
    def tokens_that_fit(self) -> int:
        """The largest budget that fits, as a multiple of 64 tokens; 0 if none fits."""
        return max(0, int((self.free - self.fixed) / self.a_token) // 64 * 64)


@dataclass(frozen=True)
class PeakMeter:
    """Reads a device's memory.

    Attributes:
        now: Reads the current state.
        peak: Returns the peak bytes in tensors since `reset`.
        reset: Starts a measurement.
    """

    now: Callable[[], DeviceMemory]
    peak: Callable[[], int]
    reset: Callable[[], None]

    @classmethod
    def of_accelerator(cls) -> PeakMeter:
        """Reads this rank's accelerator."""
        from deepspeed.accelerator import get_accelerator

        accelerator = get_accelerator()
        return cls(
            DeviceMemory.now,
            lambda: int(accelerator.max_memory_allocated()),
            lambda: accelerator.reset_peak_memory_stats(),
        )


def rehearse(
    step: CachedStep,
    inputs: ItemEncoderInputs,
    sizes: ChunkSizes,
    watch: Watch,
    measured: Callable[[ChunkMemory], None],
    meter: PeakMeter | None,
) -> None:
    """Runs the largest chunks of both passes; all ranks call it and run the same chunks.

    Nothing is updated and no gradient remains. Draws random numbers if the encoder has dropout: seed afterwards.

    Args:
        step: The step whose engine runs the chunks.
        inputs: Builds the chunks.
        sizes: Size limits of chunks.
        watch: Receives the current place, as in a step.
        measured: Receives the measurements, before the largest chunk runs.
        meter: Reads the device's memory; None if there is nothing to read, as on a CPU.

    Raises:
        torch.OutOfMemoryError: A chunk does not fit.
    """
    if meter is not None:
        points = []
        for part in _PARTS:
            chunk = largest_chunk(inputs, sizes.packing, part)
            before = meter.now()
            meter.reset()
            _forward_backward(step, chunk)
            points.append((budget_tokens(inputs, chunk), meter.peak() - before.allocated))
        now = meter.now()
        measured(ChunkMemory.through(points[0], points[1], now.free - LEFT_FREE * now.total))
    watch.at(_PASS_2)
    _forward_backward(step, largest_chunk(inputs, sizes.packing))
    if sizes.no_grad_tokens is not None:
        watch.at(_PASS_1)
        with torch.no_grad():
            _forward(step, largest_chunk(inputs, TokenBudget(sizes.no_grad_tokens)))
    dist.barrier()


def budget_tokens(inputs: ItemEncoderInputs, chunk: Chunk) -> int:
    """Budget tokens of a chunk of the largest items, including the tokens that vision units count as."""
    return chunk.num_items * inputs.budget_tokens(inputs.largest_item())


def _forward(step: CachedStep, chunk: Chunk) -> Any:
    return step.model_call(step.engine, chunk.arguments(step.engine.device, dummy_image=True))


def _forward_backward(step: CachedStep, chunk: Chunk) -> None:
    """Runs a chunk as in pass 2 with weight zero, so that the gradient sums that DeepSpeed keeps stay zero."""
    engine = step.engine
    with suppress(_RehearsedError), gradient_reduction(engine)(engine, 2) as before_backward:
        representations = _forward(step, chunk)
        before_backward()
        engine.backward(representations.sum() * 0.0, scale_wrt_gas=False)
        raise _RehearsedError
    engine.optimizer.zero_grad()
