"""Slots: what all ranks run together, whatever each of them has to encode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch
import torch.distributed as dist

from vlm2vec.contrastive.chunk import Chunk, Phase, StepChunks
from vlm2vec.contrastive.gather import is_distributed

# What a rank says of its step: chunks and those with images of three phases, whether it asks to stop, a digest.
AGREED_NUMBERS = 8


class StepStoppedError(RuntimeError):
    """A rank asked not to run the step; nothing of it has run on any rank."""


@dataclass(frozen=True)
class Slots:
    """What all ranks run in one phase: `count` engine calls, the first `with_images` of them with the vision tower.

    Under ZeRO-3 a rank that makes one call less, or leaves the vision tower out of a call in which another rank uses
    it, leaves that rank waiting for ever; under ZeRO-1/2 gradients land in the wrong bucket without an error.
    """

    count: int
    with_images: int

    def fill(self, phase: Phase, padding_chunk: Chunk) -> Iterator[tuple[Chunk, bool, bool]]:
        """For each slot the chunk to run, whether it is the rank's own (not padding), and whether images take part.

        Raises:
            RuntimeError: The phase does not hold as many chunks as it announced.
        """
        own = chain(((chunk, True) for chunk in phase.chunks), repeat((padding_chunk, False)))
        for slot, (chunk, is_own) in enumerate(islice(own, self.count)):
            if is_own != (slot < phase.num_chunks):
                raise RuntimeError(f"a phase announced {phase.num_chunks} chunks and brought another number")
            yield chunk, is_own, slot < self.with_images


def agree_on_slots(
    chunks: StepChunks,
    digest: int,
    device: torch.device,
    group: dist.ProcessGroup | None = None,
    stop: bool = False,
) -> tuple[Slots, Slots, Slots]:
    """Compares what the ranks are about to run; one small collective.

    Args:
        chunks: This rank's chunks.
        digest: A number that must be equal on all ranks: a hash of the step and its items.
        device: Where the collective runs.
        group: The process group; the default group if None.
        stop: Whether this rank asks not to run the step.

    Returns:
        The slots of the three phases: for each as many as the rank with most chunks needs.

    Raises:
        StepStoppedError: On all ranks, if one of them asked for it.
        RuntimeError: The ranks are not about to run the same global batch.
    """
    own = [number for phase in chunks.phases for number in (phase.num_chunks, phase.num_image_chunks)]
    own += [int(stop), digest]
    assert len(own) == AGREED_NUMBERS
    plans = [own]
    if is_distributed(group):
        gathered = torch.empty((dist.get_world_size(group), len(own)), dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(gathered.view(-1), torch.tensor(own, dtype=torch.int64, device=device), group=group)
        plans = gathered.tolist()
    strangers = [rank for rank, plan in enumerate(plans) if plan[-1] != plans[0][-1]]
    if strangers:
        raise RuntimeError(
            f"ranks {strangers} are about to run another global batch than rank 0: the shards, the mixture, the seed "
            "and the step must be the same on all ranks"
        )
    if any(plan[-2] for plan in plans):
        raise StepStoppedError("a rank asked not to run the step")
    most = [max(numbers) for numbers in zip(*plans, strict=True)]
    return Slots(most[0], most[1]), Slots(most[2], most[3]), Slots(most[4], most[5])
