"""Decides which of a row's nearest targets are hard negatives, and which are false negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.mining.rank import NO_TARGET, Ranked, SubsetTargets
from data_prep.mining.settings import SubsetSettings
from vlm2vec.mined.format import Lists

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Chosen:
    """The result of the rules for a block's candidates, bool (rows, candidates) each.

    Attributes:
        false: False negatives: targets of a different row with the same query, or closer than the margin allows.
        eligible: Possible negatives: neither false nor among the ranks that are skipped.
        negative: The first `num_negatives` of the eligible ones.
    """

    false: Mask
    eligible: Mask
    negative: Mask


class KnownPositives:
    """All targets of each query, over all rows with that query.

    Args:
        targets: The subset's rows and targets.
    """

    def __init__(self, targets: SubsetTargets) -> None:
        self._num_targets = len(targets.target)
        self._pairs = np.unique(targets.query.astype(np.int64) * self._num_targets + targets.own)

    def mask(self, query: npt.NDArray[np.int32], candidates: npt.NDArray[np.int32]) -> Mask:
        """Whether each candidate is the target of some row with the same query, bool (rows, candidates)."""
        pairs = query.astype(np.int64)[:, None] * self._num_targets + candidates
        found = self._pairs[np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)]
        mask: Mask = (found == pairs) & (candidates != NO_TARGET)
        return mask


def choose(ranked: Ranked, known: Mask, settings: SubsetSettings) -> Chosen:
    """Applies the rules to a block.

    Ranks are counted from the nearest target, without the row's own. A candidate is false if its score exceeds the
    positive's score minus the margin (NV-Retriever's absolute margin, https://arxiv.org/abs/2407.15831).

    Args:
        ranked: The block.
        known: See `KnownPositives`.
        settings: The subset's settings.
    """
    present = ranked.targets != NO_TARGET
    false = known & present
    if settings.margin is not None:
        with np.errstate(invalid="ignore"):
            limit = ranked.positive - np.float32(settings.margin)
            false |= present & (ranked.scores > limit[:, None])
    eligible = present & ~false
    eligible[:, : settings.skip_ranks] = False
    negative = eligible & (np.cumsum(eligible, axis=1) <= settings.num_negatives)
    return Chosen(false, eligible, negative)


def lists_of(masks: Sequence[Mask], values: Sequence[npt.NDArray[np.int32]]) -> Lists:
    """Selects values by the masks of consecutive blocks, as one list per row."""
    counts = np.concatenate([mask.sum(axis=1) for mask in masks])
    chosen = np.concatenate([value[mask] for mask, value in zip(masks, values, strict=True)])
    return Lists(chosen.astype(np.int32), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def ascending(lists: Lists) -> Lists:
    """The same lists, each in ascending order."""
    return Lists(lists.values[np.lexsort((lists.values, lists.owners))], lists.offsets)
