"""The global order: the samples of step t as a pure function of the data, the mixture, the seed and t."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vlm2vec.errors import InputError


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one step.

    Attributes:
        step: Counted from 0.
        epoch: Counted from 0.
        subsets: Index of each sample's subset in `GlobalOrder.subsets`, shape (batch,), int64.
        positions: Each sample's position in its subset, shape (batch,), int64.
    """

    step: int
    epoch: int
    subsets: NDArray[np.int64]
    positions: NDArray[np.int64]


class GlobalOrder:
    """A canonical sequence of slots that every cluster walks alike.

    A slot is `unit` consecutive samples of one subset in that subset's permuted order: 1 mixes freely, a larger unit
    gives homogeneous sub-batches. An epoch holds as many slots of a subset as it has whole units, in one seeded
    shuffle, so it covers every sample at most once; what is left over (fewer than `unit` samples of a subset, and
    fewer than one global batch of slots) differs from epoch to epoch. Nothing is replayed to reach step t, and
    neither ranks, loader workers nor a resume enter the function.

    Args:
        sizes: Number of samples of each subset, in a fixed order.
        global_batch_size: Samples a step.
        seed: Of all permutations.
        unit: Consecutive samples of one subset.

    Raises:
        InputError: The batch is not a whole number of units, or larger than an epoch.
    """

    def __init__(self, sizes: Mapping[str, int], global_batch_size: int, seed: int, unit: int = 1) -> None:
        if global_batch_size < 1 or unit < 1:
            raise InputError(f"global batch size ({global_batch_size}) and unit ({unit}) must be at least 1")
        if global_batch_size % unit:
            raise InputError(
                f"a global batch of {global_batch_size} is not a whole number of units of {unit}: change one of them"
            )
        self.subsets = tuple(sizes)
        self.sizes = tuple(sizes.values())
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.unit = unit
        self._slots_a_subset = tuple(size // unit for size in self.sizes)
        self._slots_a_step = global_batch_size // unit
        self.steps_per_epoch = sum(self._slots_a_subset) // self._slots_a_step
        if self.steps_per_epoch == 0:
            raise InputError(
                f"a global batch of {global_batch_size} is larger than an epoch: the shards hold {sum(self.sizes)} "
                f"samples in units of {unit}; use a smaller batch or more data"
            )

    @property
    def digest(self) -> str:
        """A hash of everything that the order depends on."""
        return hashlib.sha256(
            json.dumps([self.subsets, self.sizes, self.global_batch_size, self.seed, self.unit]).encode()
        ).hexdigest()

    def batch(self, step: int) -> GlobalBatch:
        """The global batch of a step, counted from 0."""
        if step < 0:
            raise ValueError(f"steps are counted from 0, not {step}")
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        slot_subsets, slot_numbers = _epoch_slots(self._slots_a_subset, self.seed, epoch)
        chosen = slice(step_in_epoch * self._slots_a_step, (step_in_epoch + 1) * self._slots_a_step)
        subsets = np.repeat(slot_subsets[chosen], self.unit)
        offsets = np.repeat(slot_numbers[chosen] * self.unit, self.unit) + np.tile(
            np.arange(self.unit), self._slots_a_step
        )
        positions = np.empty_like(offsets)
        for subset in np.unique(subsets):
            members = subsets == subset
            name, size = self.subsets[subset], self.sizes[subset]
            positions[members] = _permutation(size, "samples", self.seed, name, epoch)[offsets[members]]
        return GlobalBatch(step, epoch, subsets, positions)


# One epoch's slot order and one permutation a subset are all that consecutive steps need; a run alternates between at
# most two epochs (the loader reads ahead).
@lru_cache(maxsize=4)
def _epoch_slots(slots_a_subset: tuple[int, ...], seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The subset of each slot of an epoch, and the slot's number within its subset, shape (slots,) each."""
    subset_of_slot = np.repeat(np.arange(len(slots_a_subset)), slots_a_subset)
    number_in_subset = np.concatenate([np.arange(count) for count in slots_a_subset])
    order = _permutation(len(subset_of_slot), "slots", seed, "", epoch)
    return subset_of_slot[order], number_in_subset[order]


@lru_cache(maxsize=128)
def _permutation(size: int, purpose: str, seed: int, name: str, epoch: int) -> NDArray[np.int64]:
    """A permutation of `size` that depends on its arguments only.

    Raw Philox words and a stable sort: numpy guarantees the words, while the streams of `Generator.permutation` may
    change between versions, and a resumed run would see other data.
    """
    key = hashlib.blake2b(json.dumps([purpose, seed, name, epoch]).encode(), digest_size=16).digest()
    words = np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)).random_raw(size)
    return np.argsort(words, kind="stable")
