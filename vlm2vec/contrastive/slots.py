"""Slots: the engine calls that all ranks make together, whatever each rank has to encode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch
import torch.distributed as dist

from vlm2vec.contrastive.chunk import Chunk, Phase, StepChunks
from vlm2vec.contrastive.gather import is_distributed

# Numbers that a rank sends about its step: chunks and chunks with images of three phases, a request to stop, a digest.
AGREED_NUMBERS = 8


class StepStoppedError(RuntimeError):
    """A rank asked not to run the step; no part of it has run on any rank."""


@dataclass(frozen=True)
class Slots:
    """Engine calls that all ranks make in one phase: `count` calls, the first `with_images` with the vision tower.

    Under ZeRO-3, if a rank makes one call less, or leaves out the vision tower in a call in which a different rank uses
    it, the other rank waits for ever. Under ZeRO-1/2, gradients land in the wrong bucket without an error.
    """

    count: int
    with_images: int

    def fill(self, phase: Phase, padding_chunk: Chunk) -> Iterator[tuple[Chunk, bool, bool]]:
        """Yields for each slot the chunk to run, whether it is a real chunk (not padding), and whether it has images.

        Raises:
            RuntimeError: The number of chunks differs from the phase's `num_chunks`.
        """
        own = chain(((chunk, True) for chunk in phase.chunks), repeat((padding_chunk, False)))
        for slot, (chunk, is_own) in enumerate(islice(own, self.count)):
            if is_own != (slot < phase.num_chunks):
                raise RuntimeError(
                    f"expected {phase.num_chunks} chunks in this phase, got {'more' if is_own else slot}"
                )
            yield chunk, is_own, slot < self.with_images


def agree_on_slots(
    chunks: StepChunks,
    digest: int,
    device: torch.device,
    group: dist.ProcessGroup | None = None,
    stop: bool = False,
) -> tuple[Slots, Slots, Slots]:
    """Agrees on the slots of a step and checks that all ranks have the same batch; one small collective.

    Args:
        chunks: This rank's chunks.
        digest: Hash of the step and its items, which must be equal on all ranks.
        device: Device of the collective.
        group: The process group; the default group if None.
        stop: Whether this rank asks not to run the step.

    Returns:
        The slots of the three phases, each as many as the rank with the most chunks needs.

    Raises:
        StepStoppedError: On all ranks, if one of them asked to stop.
        RuntimeError: The ranks do not have the same global batch.
    """
    own = [number for phase in chunks.phases for number in (phase.num_chunks, phase.num_image_chunks)]
    own += [int(stop), digest]
    assert len(own) == AGREED_NUMBERS
    plans = [own]
    if is_distributed(group):
        gathered = torch.empty((dist.get_world_size(group), len(own)), dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(gathered.view(-1), torch.tensor(own, dtype=torch.int64, device=device), group=group)
        plans = gathered.tolist()
    mismatched = [rank for rank, plan in enumerate(plans) if plan[-1] != plans[0][-1]]
    if mismatched:
        raise RuntimeError(
            f"ranks {mismatched} have a different global batch than rank 0: the shards, the mixture, the seed and the "
            "step must be the same on all ranks"
        )
    if any(plan[-2] for plan in plans):
        raise StepStoppedError("a rank asked not to run the step")
    most = [max(numbers) for numbers in zip(*plans, strict=True)]
    return Slots(most[0], most[1]), Slots(most[2], most[3]), Slots(most[4], most[5])
