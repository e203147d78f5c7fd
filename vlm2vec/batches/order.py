"""The global order: the samples of step t as a pure function of the data, the mixture, the seed and t."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Set

import numpy as np
import numpy.typing as npt

from vlm2vec.batches.clusters import Clusters
from vlm2vec.batches.distinct import count_duplicates, separate
from vlm2vec.batches.groups import Groups
from vlm2vec.batches.mixture import Mixture
from vlm2vec.batches.passes import Passes
from vlm2vec.batches.permutation import permute
from vlm2vec.batches.replacement import GlobalBatch, replace_damaged
from vlm2vec.choices import BLOCK, SUBSET
from vlm2vec.errors import InputError

# Part of the digest, so that a run is not resumed with a different order.
_ORDER_VERSION = 2
# The loader reads ahead, so a run needs at most two epochs at a time.
_EPOCHS_IN_MEMORY = 2

Indices = npt.NDArray[np.int64]


class GlobalOrder:
    """The sequence of samples of a run, the same on any number of ranks.

    A slot is `mixture.unit` consecutive samples of one group, which is a subset or all subsets of a meta-task: a unit
    of 1 mixes freely, a larger unit gives homogeneous sub-batches. An epoch shuffles each group's quota of slots with
    the seed. Slot c of a group, counted over all epochs, reads unit c of that group's passes; each pass has a different
    permutation of rows or of mined clusters of rows. If the quotas are the groups' sizes, an epoch visits every sample
    at most once; the samples that it leaves out (`remainder`) differ from epoch to epoch. Step t is computed without
    replaying earlier steps, and independently of ranks, loader workers and resumes.

    Args:
        sizes: Number of samples of each subset, in a fixed order.
        global_batch_size: Samples per step.
        seed: Seed of all permutations.
        mixture: All other settings of the order.
        target_hashes: Returns a number for each sample of a subset, equal for equal targets; needed for
            `mixture.distinct_positives`.
        clusters: Rows that stay together, with the subsets in the same order; a unit holds one or several clusters.

    Attributes:
        steps_per_epoch: Whole batches per epoch.
        covers_each_sample_once: Whether an epoch repeats no sample, because the quotas are the groups' sizes.
        remainder: Samples that such an epoch leaves out: ends shorter than a unit, and slots that fill no whole batch.

    Raises:
        InputError: The batch is not a whole number of units, a unit is not a whole number of clusters, the batch is
            larger than an epoch, or the mixture does not match the data.
        ValueError: The mixture cannot be combined with groups or clusters.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        global_batch_size: int,
        seed: int,
        mixture: Mixture | None = None,
        target_hashes: Callable[[str], npt.NDArray[np.int64]] | None = None,
        clusters: Clusters | None = None,
    ) -> None:
        self.mixture = mixture or Mixture()
        unit = self.mixture.unit
        if global_batch_size < 1 or unit < 1:
            raise InputError(f"global batch size ({global_batch_size}) and unit ({unit}): must be at least 1")
        if global_batch_size % unit:
            raise InputError(
                f"a global batch of {global_batch_size} is not a whole number of units of {unit}: change one of them"
            )
        self.subsets = tuple(sizes)
        self.sizes = tuple(self.mixture.used_samples(size) for size in sizes.values())
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.clusters = clusters
        self._all_sizes = tuple(sizes.values())
        self._refuse_combinations()
        piece = 1 if clusters is None else clusters.size
        groups = Groups.of(self.subsets, [size // piece for size in self.sizes], self.mixture.groups)
        self.passes = Passes(self.subsets, self.sizes, self._all_sizes, seed, self.mixture, groups, clusters)
        units = {name: int(size) * piece // unit for name, size in zip(groups.names, groups.sizes, strict=True)}
        used = dict(zip(sizes, self.sizes, strict=True))
        self._refuse_small(sizes, units)
        self._units_a_pass = np.array(list(units.values()))
        self._quotas = np.array(self.mixture.quotas(units, used))
        self._slot_ends = np.cumsum(self._quotas)
        self.slots_per_epoch = int(self._slot_ends[-1])
        self.steps_per_epoch = self.slots_per_epoch * unit // global_batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"a global batch of {global_batch_size} is larger than an epoch: the shards hold {sum(self.sizes)} "
                f"samples in units of {unit}; use a smaller batch or more data"
            )
        self.covers_each_sample_once = tuple(self._quotas) == tuple(self._units_a_pass)
        self.remainder = sum(self.sizes) - self.steps_per_epoch * global_batch_size
        if self.mixture.distinct_positives and target_hashes is None:
            raise ValueError("distinct positives need the targets' hashes")
        self._targets = self._number_targets(target_hashes) if target_hashes is not None else None
        self._whole_epochs: dict[int, tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]] = {}

    @property
    def digest(self) -> str:
        """Hash of everything that the order depends on, except the targets, which the shards' fingerprint covers."""
        mixture = dataclasses.asdict(self.mixture)
        if self.mixture.groups == SUBSET:
            del mixture["groups"]  # keeps the digests of orders from before groups existed
        parts = [_ORDER_VERSION, self.subsets, self._all_sizes, self.global_batch_size, self.seed, mixture]
        if self.clusters is not None:
            parts.append(self.clusters.digest)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def batch(self, step: int, damaged: Set[tuple[str, int]] = frozenset()) -> GlobalBatch:
        """The global batch of a step.

        Args:
            step: Number of the step, counted from 0.
            damaged: Unreadable samples (subset, position). Each is replaced by a different sample of its subset, which
                depends on the seed, the step and its place in the batch.

        Raises:
            InputError: A subset has no readable sample left to replace a damaged one.
        """
        if step < 0:
            raise ValueError(f"steps are counted from 0, not {step}")
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        chosen = slice(step_in_epoch * self.global_batch_size, (step_in_epoch + 1) * self.global_batch_size)
        if self.mixture.distinct_positives or self.mixture.order == BLOCK:
            subsets, positions = (column[chosen].astype(np.int64) for column in self._whole_epoch(epoch))
        else:
            groups, numbers = self._slots(epoch, np.arange(chosen.start, chosen.stop) // self.mixture.unit)
            subsets, positions = self._samples(epoch, groups, numbers, np.arange(chosen.start, chosen.stop))
        batch = GlobalBatch(step, epoch, subsets, positions)
        return replace_damaged(batch, damaged, self.passes) if damaged else batch

    def duplicate_targets(self, epoch: int) -> int:
        """Number of rows of an epoch whose target occurs earlier in the same batch."""
        assert self._targets is not None
        subsets, positions = (column.astype(np.int64) for column in self._whole_epoch(epoch))
        return count_duplicates(self._targets_of(subsets, positions), self.global_batch_size)

    def _refuse_combinations(self) -> None:
        mixture, clusters = self.mixture, self.clusters
        if mixture.groups != SUBSET and (mixture.order == BLOCK or mixture.weights or mixture.temperature):
            raise ValueError("groups of several subsets cannot be combined with block order, weights or a temperature")
        if clusters is None:
            return
        if mixture.order == BLOCK or mixture.max_samples is not None or mixture.distinct_positives:
            raise ValueError(
                "clusters stay whole: they cannot be combined with block order, max_samples or distinct_positives"
            )
        if tuple(map(len, clusters.rows)) != self._all_sizes:
            raise ValueError("the clusters were made for different subsets")
        if mixture.unit % clusters.size:
            raise InputError(
                f"a unit of {mixture.unit} pairs is not a whole number of mined clusters of {clusters.size}: make "
                f"--homogeneous_batch_size a multiple of {clusters.size}"
            )

    def _refuse_small(self, sizes: Mapping[str, int], units: Mapping[str, int]) -> None:
        """Refuses subsets smaller than a cluster, groups smaller than a unit, and a grouping of only single subsets."""
        groups, unit = self.passes.groups, self.mixture.unit
        piece = 1 if self.clusters is None else self.clusters.size
        for name, size in sizes.items():
            if piece > 1 and size < piece:
                raise InputError(
                    f"subset {name} has {size} samples, fewer than a cluster of {piece}: leave it out with "
                    "--subset_name, or mine smaller clusters"
                )
        for index, (name, count) in enumerate(units.items()):
            if count == 0:
                named = f"subset {name} has {sizes[name]}" if name in sizes else f"{name} has {groups.sizes[index]}"
                raise InputError(
                    f"{named} samples, fewer than a unit of {unit}: leave it out with --subset_name, or use a smaller "
                    "--homogeneous_batch_size"
                )
        if self.mixture.groups != SUBSET and len(groups.names) == len(sizes):
            raise InputError(
                f"--homogeneous_groups {self.mixture.groups}: no effect, because no two subsets share a meta-task "
                f"({', '.join(sizes)}); leave it out"
            )

    def _slots(self, epoch: int, slots: Indices) -> tuple[Indices, Indices]:
        """Group of each slot of an epoch, and the slot's number in its group."""
        shuffled = permute(slots, self.slots_per_epoch, "slots", self.seed, epoch)
        groups = np.searchsorted(self._slot_ends, shuffled, side="right")
        return groups, shuffled - (self._slot_ends - self._quotas)[groups]

    def _samples(self, epoch: int, groups: Indices, numbers: Indices, places: Indices) -> tuple[Indices, Indices]:
        """Subset and position of the sample at each place of an epoch, from its slot's group and number in it."""
        passes, units = np.divmod(epoch * self._quotas[groups] + numbers, self._units_a_pass[groups])
        offsets = units * self.mixture.unit + places % self.mixture.unit
        return self.passes.samples(groups, passes, offsets)

    def _whole_epoch(self, epoch: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]:
        """Subset and position at every place of an epoch's batches, for orders that need the whole epoch at once."""
        if epoch not in self._whole_epochs:
            unit = self.mixture.unit
            groups, numbers = self._slots(epoch, np.arange(self.slots_per_epoch))
            if self.mixture.order == BLOCK:
                numbers = _ranks(
                    groups
                )  # reads a subset's units in the order of its pass, so that blocks stay together
            places = np.arange(self.steps_per_epoch * self.global_batch_size)
            subsets, positions = self._samples(epoch, groups[places // unit], numbers[places // unit], places)
            if self.mixture.distinct_positives:
                targets = self._targets_of(subsets, positions)
                rows, _ = separate(targets, subsets, self.global_batch_size, self.seed, epoch)
                positions = positions[rows]
            self._whole_epochs = dict([*self._whole_epochs.items()][1 - _EPOCHS_IN_MEMORY :])
            self._whole_epochs[epoch] = subsets.astype(np.int16), positions.astype(np.int32)
        return self._whole_epochs[epoch]

    def _number_targets(
        self, target_hashes: Callable[[str], npt.NDArray[np.int64]]
    ) -> tuple[npt.NDArray[np.int32], ...]:
        hashes = [target_hashes(name) for name in self.subsets]
        _, numbers = np.unique(np.concatenate(hashes), return_inverse=True)
        return tuple(np.split(numbers.astype(np.int32), np.cumsum(self._all_sizes)[:-1]))

    def _targets_of(self, subsets: Indices, positions: Indices) -> Indices:
        assert self._targets is not None
        targets = np.empty_like(positions)
        for subset in np.unique(subsets):
            members = subsets == subset
            targets[members] = self._targets[subset][positions[members]]
        return np.unique(targets, return_inverse=True)[1]  # numbers below the number of rows


def _ranks(groups: Indices) -> Indices:
    """Number of earlier elements of the same group, for each element."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    ranks = np.empty_like(groups)
    ranks[order] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks
