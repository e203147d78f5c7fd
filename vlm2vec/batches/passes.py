"""One pass over a subset: which sample stands where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlm2vec.batches.mixture import BLOCK, BLOCK_SAMPLES, WINDOW_BLOCKS, Mixture
from vlm2vec.batches.permutation import permute, permute_groups

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Passes:
    """The permuted passes over all subsets.

    Attributes:
        subsets: Their names.
        sizes: How many samples of each take part.
        all_sizes: How many samples each has.
        seed: Of all permutations.
        mixture: Which samples take part, and in what order.
    """

    subsets: tuple[str, ...]
    sizes: tuple[int, ...]
    all_sizes: tuple[int, ...]
    seed: int
    mixture: Mixture

    def positions(self, subsets: Indices, passes: Indices, offsets: Indices) -> Indices:
        """The samples at some offsets of the subsets' passes, which are counted from 0; shape (n,) each."""
        ends = int(passes.max()) + 1
        which, groups = np.unique(subsets * ends + passes, return_inverse=True)
        found = [(each // ends, each % ends) for each in which.tolist()]
        if self.mixture.order == BLOCK:
            positions = np.empty_like(offsets)
            for group, (subset, number) in enumerate(found):
                own = groups == group
                name, size = self.subsets[subset], self.sizes[subset]
                positions[own] = _in_blocks(offsets[own], size, self.seed, name, number)
            return positions
        keys = [("samples", self.seed, self.subsets[subset], number) for subset, number in found]
        numbers = permute_groups(offsets, groups, [self.sizes[subset] for subset, _ in found], keys)
        return self.chosen(subsets, numbers)

    def chosen(self, subsets: Indices, numbers: Indices) -> Indices:
        """Positions of the samples that take part, from their numbers in [0, sizes[subset])."""
        if self.mixture.first_samples or self.sizes == self.all_sizes:
            return numbers
        keys = [("rows", self.seed, name) for name in self.subsets]
        drawn = permute_groups(numbers, subsets, self.all_sizes, keys)
        whole = np.array(self.sizes) == np.array(self.all_sizes)
        return np.where(whole[subsets], numbers, drawn)


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
