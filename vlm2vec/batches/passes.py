"""One pass over a subset: which sample stands where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm2vec.batches.mixture import BLOCK, BLOCK_SAMPLES, WINDOW_BLOCKS, Mixture
from vlm2vec.batches.permutation import permute

Indices = NDArray[np.int64]


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

    def positions(self, subset: int, number: int, offsets: Indices) -> Indices:
        """The samples at some offsets of a subset's pass, passes counted from 0."""
        name, size = self.subsets[subset], self.sizes[subset]
        if self.mixture.order == BLOCK:
            return _in_blocks(offsets, size, self.seed, name, number)
        return self.chosen(subset, permute(offsets, size, "samples", self.seed, name, number))

    def chosen(self, subset: int, numbers: Indices) -> Indices:
        """Positions of the samples that take part, from their numbers in [0, sizes[subset])."""
        size = self.all_sizes[subset]
        if self.mixture.first_samples or self.sizes[subset] == size:
            return numbers
        return permute(numbers, size, "rows", self.seed, self.subsets[subset])


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
