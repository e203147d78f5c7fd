"""Mixture of subsets: exact quotas per epoch, and which samples of a subset are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm2vec.choices import RANDOM, SUBSET
from vlm2vec.errors import InputError

# Block order: number of consecutive samples that are read together (10 MB of photographs), and number of such blocks,
# drawn from the whole subset, whose samples are shuffled together.
BLOCK_SAMPLES = 64
WINDOW_BLOCKS = 64


@dataclass(frozen=True)
class Mixture:
    """Settings of the order besides the data, the batch size and the seed.

    Attributes:
        unit: Number of consecutive samples of a batch that come from one subset, or from one group of subsets.
        weights: Each subset's share of an epoch, relative to the others; None: its number of samples.
        temperature: T; makes shares proportional to (number of samples)^(1/T) instead.
        max_samples: Most samples of a subset to use; None: all.
        first_samples: Use the first `max_samples`, as the original does; otherwise a sample drawn with the seed.
        order: "random" over the whole subset, or "block": in blocks that can be read in one piece.
        distinct_positives: Put rows with the same target into different batches where possible.
        groups: What a unit draws from: "subset", or "meta_task" for all subsets of one meta-task.
    """

    unit: int = 1
    weights: Mapping[str, float] | None = None
    temperature: float | None = None
    max_samples: int | None = None
    first_samples: bool = False
    order: str = RANDOM
    distinct_positives: bool = False
    groups: str = SUBSET

    def used_samples(self, size: int) -> int:
        """Number of used samples of a subset with `size` samples."""
        return size if self.max_samples is None else min(size, self.max_samples)

    def quotas(self, units: Mapping[str, int], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Units of each group per epoch; an epoch is as long as one pass over all groups.

        Args:
            units: Whole units of each group in one pass over it. Groups of several subsets have no weights.
            sizes: Number of samples of each subset.

        Raises:
            InputError: A subset has no weight, a weight has no subset, or a share is too small for a single unit.
        """
        if self.weights is None and self.temperature is None:
            return tuple(units.values())
        quotas = largest_remainder(sum(units.values()), self._shares(sizes))
        for name, quota in zip(sizes, quotas, strict=True):
            if quota == 0:
                raise InputError(
                    f"subset {name}: its share of the mixture is less than one unit per epoch; raise its weight, or "
                    "leave it out with --subset_name"
                )
        return quotas

    def _shares(self, sizes: Mapping[str, int]) -> list[float]:
        if self.weights is None:
            assert self.temperature is not None
            return [size ** (1 / self.temperature) for size in sizes.values()]
        for name, weight in self.weights.items():
            if name not in sizes:
                raise InputError(f"--mixture_weights {name}: no such subset; the subsets are {', '.join(sizes)}")
            if not 0 < weight < float("inf"):
                raise InputError(
                    f"--mixture_weights {name}={weight}: must be positive; to leave out a subset, use --subset_name"
                )
        missing = [name for name in sizes if name not in self.weights]
        if missing:
            raise InputError(f"--mixture_weights: no weight for {', '.join(missing)}; give every subset a weight")
        return [self.weights[name] for name in sizes]


def largest_remainder(total: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers that sum to `total` and differ from exact proportion to `shares` by less than one."""
    whole = sum(shares)
    exact = [total * share / whole for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return tuple(counts)
