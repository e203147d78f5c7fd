"""Chunks of a rank's items, and what the ranks have to agree on before they run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vlm2vec.contrastive.gather import is_distributed

DUMMY_IMAGE = "dummy_image"


@dataclass(frozen=True)
class Chunk:
    """Items that go through the encoder in one call.

    Attributes:
        inputs: Keyword arguments of the encoder; tensors are moved to the device when the chunk runs.
        num_items: How many rows the encoder returns for it.
        has_image: Whether the call runs the vision tower.
        host_inputs: Keyword arguments that stay on the host (layouts that Python code reads).
    """

    inputs: Mapping[str, Any]
    num_items: int
    has_image: bool = False
    host_inputs: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, device: torch.device, dummy_image: bool) -> dict[str, Any]:
        """The encoder's keyword arguments on `device`; with `dummy_image` a chunk without images runs a dummy one."""
        arguments = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        arguments.update(self.host_inputs)
        if dummy_image and not self.has_image:
            arguments[DUMMY_IMAGE] = True
        return arguments


@dataclass(frozen=True)
class SlotPlan:
    """What all ranks run in one pass: `num_slots` engine calls, the first `num_image_slots` of them with images.

    Under ZeRO-3 a rank that makes one call less, or leaves the vision tower out of a call in which another rank uses
    it, leaves that rank waiting for ever; under ZeRO-1/2 gradients land in the wrong bucket without an error.
    """

    num_slots: int
    num_image_slots: int


def images_first(chunks: Sequence[Chunk]) -> list[int]:
    """Order of execution: chunks with images first, so that one number says which slots have images."""
    return sorted(range(len(chunks)), key=lambda index: not chunks[index].has_image)


def agree_on_slots(
    chunks: Sequence[Chunk], digest: int, device: torch.device, group: dist.ProcessGroup | None = None
) -> SlotPlan:
    """Compares what the ranks are about to run; one small collective and the only host sync of a step.

    Args:
        chunks: This rank's chunks.
        digest: A number that must be equal on all ranks: a hash of the step and its items.
        device: Where the collective runs.
        group: The process group; the default group if None.

    Raises:
        RuntimeError: The ranks are not about to run the same global batch.
    """
    own = [len(chunks), sum(chunk.has_image for chunk in chunks), digest]
    if not is_distributed(group):
        return SlotPlan(own[0], own[1])
    gathered = torch.empty((dist.get_world_size(group), len(own)), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(gathered.view(-1), torch.tensor(own, dtype=torch.int64, device=device), group=group)
    plans = gathered.tolist()
    strangers = [rank for rank, plan in enumerate(plans) if plan[2] != plans[0][2]]
    if strangers:
        raise RuntimeError(
            f"ranks {strangers} are about to run another global batch than rank 0: the shards, the mixture, the seed "
            "and the step must be the same on all ranks"
        )
    return SlotPlan(max(plan[0] for plan in plans), max(plan[1] for plan in plans))
