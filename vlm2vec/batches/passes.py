"""Passes over subsets or groups of subsets: maps a place in a pass to a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlm2vec.batches.clusters import Clusters
from vlm2vec.batches.groups import Groups
from vlm2vec.batches.mixture import BLOCK_SAMPLES, WINDOW_BLOCKS, Mixture
from vlm2vec.batches.permutation import permute, permute_groups
from vlm2vec.choices import BLOCK

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Passes:
    """The permuted passes over all groups of subsets.

    Attributes:
        subsets: Names of the subsets.
        sizes: Number of used samples of each subset.
        all_sizes: Number of samples of each subset.
        seed: Seed of all permutations.
        mixture: Which samples are used, and in what order.
        groups: Which subsets share a pass.
        clusters: Rows that stay together; None: every row is one piece.
    """

    subsets: tuple[str, ...]
    sizes: tuple[int, ...]
    all_sizes: tuple[int, ...]
    seed: int
    mixture: Mixture
    groups: Groups
    clusters: Clusters | None = None

    def samples(self, groups: Indices, passes: Indices, offsets: Indices) -> tuple[Indices, Indices]:
        """Subset and position of the samples at some places of the groups' passes.

        Args:
            groups: Group of each place, shape (n,).
            passes: Number of the pass, counted from 0, shape (n,).
            offsets: Place in the pass, shape (n,).
        """
        which, found = _distinct(groups, passes)
        if self.mixture.order == BLOCK:  # here every group is a single subset
            positions = np.empty_like(offsets)
            for index, (subset, number) in enumerate(found):
                own = which == index
                name, size = self.subsets[subset], self.sizes[subset]
                positions[own] = _in_blocks(offsets[own], size, self.seed, name, number)
            return groups, positions
        pieces, within = np.divmod(offsets, 1 if self.clusters is None else self.clusters.size)
        keys = [("samples", self.seed, self.groups.names[group], number) for group, number in found]
        numbers = permute_groups(pieces, which, [int(self.groups.sizes[group]) for group, _ in found], keys)
        subsets, numbers = self.groups.find(groups, numbers)
        if self.clusters is None:
            return subsets, self.chosen(subsets, numbers)
        return subsets, self._in_clusters(self.clusters, subsets, passes, numbers, within)

    def _in_clusters(
        self, clusters: Clusters, subsets: Indices, passes: Indices, pieces: Indices, within: Indices
    ) -> Indices:
        positions = np.empty_like(pieces)
        which, found = _distinct(subsets, passes)
        for index, (subset, number) in enumerate(found):
            own = which == index
            key = (self.seed, self.subsets[subset])
            positions[own] = clusters.positions(subset, pieces[own], within[own], key, number)
        return positions

    def chosen(self, subsets: Indices, numbers: Indices) -> Indices:
        """Positions of used samples, from their numbers in [0, sizes[subset])."""
        if self.mixture.first_samples or self.sizes == self.all_sizes:
            return numbers
        keys = [("rows", self.seed, name) for name in self.subsets]
        drawn = permute_groups(numbers, subsets, self.all_sizes, keys)
        whole = np.array(self.sizes) == np.array(self.all_sizes)
        return np.where(whole[subsets], numbers, drawn)


def _distinct(groups: Indices, passes: Indices) -> tuple[Indices, list[tuple[int, int]]]:
    """Index of each element's (group, pass) among the distinct ones, and the distinct ones."""
    ends = int(passes.max()) + 1
    distinct, which = np.unique(groups * ends + passes, return_inverse=True)
    return which, [(each // ends, each % ends) for each in distinct.tolist()]


def _in_blocks(offsets: Indices, size: int, seed: int, name: str, number: int) -> Indices:
    """Positions in block order: blocks of neighbours in random order, samples shuffled within a window of blocks.

    A last block that is shorter than the others stays last.
    """
    window_size = BLOCK_SAMPLES * WINDOW_BLOCKS
    shuffled = np.empty_like(offsets)
    for window in np.unique(offsets // window_size).tolist():
        members = offsets // window_size == window
        start = window * window_size
        width = min(window_size, size - start)
        shuffled[members] = start + permute(offsets[members] - start, width, "window", seed, name, number, window)
    blocks, within = np.divmod(shuffled, BLOCK_SAMPLES)
    num_whole = size // BLOCK_SAMPLES
    whole = blocks < num_whole
    if whole.any():
        blocks[whole] = permute(blocks[whole], num_whole, "blocks", seed, name, number)
    return blocks * BLOCK_SAMPLES + within
