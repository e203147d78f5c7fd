"""The samples of one step, with damaged ones replaced by readable ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from vlm2vec.batches.passes import Indices, Passes
from vlm2vec.batches.permutation import permute
from vlm2vec.errors import InputError


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one step.

    Attributes:
        step: Number of the step, counted from 0.
        epoch: Number of the epoch, counted from 0.
        subsets: Index of each sample's subset in `GlobalOrder.subsets`, shape (batch,), int64.
        positions: Position of each sample in its subset, shape (batch,), int64.
    """

    step: int
    epoch: int
    subsets: Indices
    positions: Indices


def replace_damaged(batch: GlobalBatch, damaged: Set[tuple[str, int]], passes: Passes) -> GlobalBatch:
    """Replaces a batch's damaged samples (subset, position) by other samples of their subsets.

    The substitute is the first readable sample, not yet in the batch, in a permutation that depends on the seed, the
    step and the place in the batch, so that every rank finds the same without communication.

    Raises:
        InputError: A subset has no such sample left.
    """
    positions = batch.positions.copy()
    names = [passes.subsets[subset] for subset in batch.subsets.tolist()]
    taken = set(zip(names, positions.tolist(), strict=True))
    for place, (name, position) in enumerate(zip(names, batch.positions.tolist(), strict=True)):
        if (name, position) not in damaged:
            continue
        subset = int(batch.subsets[place])
        size = passes.sizes[subset]
        for attempt in range(size):
            number = permute(np.array([attempt]), size, "replacement", passes.seed, name, batch.step, place)
            substitute = (name, int(passes.chosen(np.array([subset]), number)[0]))
            if substitute not in damaged and substitute not in taken:
                break
        else:
            raise InputError(f"subset {name}: no readable sample is left to replace {position} in step {batch.step}")
        positions[place] = substitute[1]
        taken.add(substitute)
    return dataclasses.replace(batch, positions=positions)
