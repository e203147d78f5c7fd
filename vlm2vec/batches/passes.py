"""One pass over a subset, or over a group of subsets: which sample stands where."""

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
        subsets: Their names.
        sizes: How many samples of each take part.
        all_sizes: How many samples each has.
        seed: Of all permutations.
        mixture: Which samples take part, and in what order.
        groups: Which subsets share a pass.
        clusters: Rows that stay together; None: every row is a piece of its own.
    """

    subsets: tuple[str, ...]
    sizes: tuple[int, ...]
    all_sizes: tuple[int, ...]
    seed: int
    mixture: Mixture
    groups: Groups
    clusters: Clusters | None = None

    def samples(self, groups: Indices, passes: Indices, offsets: Indices) -> tuple[Indices, Indices]:
        """Subset and position of the samples at some offsets of the groups' passes.

        Args:
            groups: Whose pass, shape (n,).
            passes: Which pass, counted from 0, shape (n,).
            offsets: Where in it, shape (n,).
        """
        which, found = _distinct(groups, passes)
        if self.mixture.order == BLOCK:  # every subset is a group
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
        """Positions of the samples that take part, from their numbers in [0, sizes[subset])."""
        if self.mixture.first_samples or self.sizes == self.all_sizes:
            return numbers
        keys = [("rows", self.seed, name) for name in self.subsets]
        drawn = permute_groups(numbers, subsets, self.all_sizes, keys)
        whole = np.array(self.sizes) == np.array(self.all_sizes)
        return np.where(whole[subsets], numbers, drawn)


def _distinct(groups: Indices, passes: Indices) -> tuple[Indices, list[tuple[int, int]]]:
    """The distinct pairs of group and pass, and which of them each element is."""
    ends = int(passes.max()) + 1
    distinct, which = np.unique(groups * ends + passes, return_inverse=True)
    return which, [(each // ends, each % ends) for each in distinct.tolist()]


def _in_blocks(offsets: Indices, size: int, seed: int, name: str, number: int) -> Indices:
    """Blocks of neighbours in random order, their samples shuffled within a window of blocks.

    The last block of a subset, where it is shorter than the others, stays last.
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
