"""Chunks of a rank's items, and the phases of a step that run them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Items that go through the encoder in one call.

    Attributes:
        inputs: Keyword arguments of the encoder; tensors are moved to the device when the chunk runs.
        num_items: Number of rows that the encoder returns for it.
        has_image: Whether the call runs the vision tower.
        host_inputs: Keyword arguments that stay on the host (layouts that Python code reads).
        dummy_inputs: Additional keyword arguments for a chunk without images when a different rank's chunk has images:
            an image of weight zero, which runs every module and reaches every parameter that a real image does, so
            that ranks stay in lock-step. Tensors are moved to the device.
        names: Names of the items in error messages.
        damaged: Indices of items that could not be read; harmless values replace them, and the step ends before
            anything is updated (`DamagedItemsError`).
    """

    inputs: Mapping[str, Any]
    num_items: int
    has_image: bool = False
    host_inputs: Mapping[str, Any] = field(default_factory=dict)
    dummy_inputs: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    damaged: tuple[int, ...] = ()

    def arguments(self, device: torch.device, dummy_image: bool) -> dict[str, Any]:
        """The encoder's keyword arguments on `device`.

        Args:
            device: Device of the encoder.
            dummy_image: Whether some rank's call has images; a chunk without images then gets its dummy's arguments.

        Raises:
            ValueError: Such a chunk has no dummy; ranks would run different modules and wait for each other for ever.
        """
        inputs = self.inputs
        if dummy_image and not self.has_image:
            if not self.dummy_inputs:
                raise ValueError(
                    "a chunk without images runs while other ranks' chunks have images: give it dummy_inputs"
                )
            inputs = {**inputs, **self.dummy_inputs}
        arguments = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        return {**arguments, **self.host_inputs}

    def pin_memory(self) -> Chunk:
        """Copies the chunk to page-locked memory, from which transfers to a device do not block; for DataLoader."""
        inputs, dummy_inputs = (
            {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in each.items()}
            for each in (self.inputs, self.dummy_inputs)
        )
        return replace(self, inputs=inputs, dummy_inputs=dummy_inputs)


@dataclass(frozen=True)
class Phase:
    """Chunks that run in sequence.

    Attributes:
        chunks: The chunks, iterated once. Chunks with images come first, so that one number tells which slots have
            images. They may be produced while the step runs, so that only a few chunks' images are in memory.
        num_chunks: Number of chunks.
        num_image_chunks: Number of chunks with images, which are the first ones.
    """

    chunks: Iterable[Chunk]
    num_chunks: int
    num_image_chunks: int

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Phase:
        """Makes a phase of chunks that are all in memory.

        Raises:
            ValueError: A chunk with images comes after one without.
        """
        has_image = [chunk.has_image for chunk in chunks]
        if has_image != sorted(has_image, reverse=True):
            raise ValueError("chunks with images must come before chunks without")
        return cls(chunks, len(chunks), sum(has_image))


@dataclass(frozen=True)
class StepChunks:
    """A rank's items in the three phases of a cached step.

    The concatenated items of `encode` are those of `repeat`, in the same order; the items of `keep` follow them.

    Attributes:
        encode: Pass 1 without a graph. Chunks may be larger than in `repeat`, unless there is dropout, whose masks are
            replayed call by call.
        keep: Pass 1 with a graph that stays in memory, so that these chunks run only once.
        repeat: Pass 2, with a graph, chunk by chunk.
    """

    encode: Phase
    keep: Phase
    repeat: Phase

    @classmethod
    def of(cls, chunks: Sequence[Chunk], keep_graphs: int = 0) -> StepChunks:
        """Makes the phases for chunks that are all in memory; the last `keep_graphs` of them run only once."""
        first_kept = max(0, len(chunks) - keep_graphs)
        repeated, kept = Phase.of(chunks[:first_kept]), Phase.of(chunks[first_kept:])
        return cls(encode=repeated, keep=kept, repeat=repeated)

    @property
    def phases(self) -> tuple[Phase, Phase, Phase]:
        """The phases in the order in which they run."""
        return self.encode, self.keep, self.repeat
