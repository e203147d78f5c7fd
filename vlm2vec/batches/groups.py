"""Groups of subsets: a homogeneous unit of the order draws from one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlm2vec.choices import META_TASK
from vlm2vec.mmeb import meta_task_of

Indices = npt.NDArray[np.int64]


def group_of(subset: str, grouping: str) -> str:
    """Name of a subset's group: the subset, or its meta-task if the grouping is by meta-task and it has one."""
    task = meta_task_of(subset) if grouping == META_TASK else None
    return subset if task is None else f"meta-task {task}"


@dataclass(frozen=True)
class RowGroups:
    """Group of each subset's rows.

    Attributes:
        names: Names of the groups, in the order of their first subsets.
        of_subset: Number of each subset's group, shape (subsets,), int64.
    """

    names: tuple[str, ...]
    of_subset: Indices

    @classmethod
    def of(cls, subsets: Sequence[str], grouping: str) -> RowGroups:
        """Groups the rows of subsets."""
        groups = [group_of(subset, grouping) for subset in subsets]
        names = tuple(dict.fromkeys(groups))
        return cls(names, np.array([names.index(group) for group in groups], dtype=np.int64))


@dataclass(frozen=True)
class Groups:
    """The subsets in groups, and the number of pieces of each. A piece is what a pass shuffles: a row or a cluster.

    Attributes:
        names: Names of the groups: a subset's, or "meta-task ...".
        sizes: Number of pieces of each group, shape (groups,).
        members: Indices of the subsets, group by group, shape (subsets,).
        pieces: Number of pieces of each of `members`, shape (subsets,).
    """

    names: tuple[str, ...]
    sizes: Indices
    members: Indices
    pieces: Indices

    @classmethod
    def of(cls, subsets: Sequence[str], pieces: Sequence[int], grouping: str) -> Groups:
        """Groups subsets: each subset alone, or the subsets of a meta-task together.

        A subset of no known benchmark has no meta-task and forms a separate group.
        """
        by_name: dict[str, list[int]] = {}
        for subset, name in enumerate(subsets):
            by_name.setdefault(group_of(name, grouping), []).append(subset)
        members = np.array([subset for group in by_name.values() for subset in group])
        counts = np.array(pieces)
        sizes = np.array([counts[group].sum() for group in by_name.values()])
        return cls(tuple(by_name), sizes, members, counts[members])

    def find(self, groups: Indices, numbers: Indices) -> tuple[Indices, Indices]:
        """Subset and number within the subset of some pieces, given by group and number within the group."""
        ends = np.cumsum(self.pieces)
        places = (np.cumsum(self.sizes) - self.sizes)[groups] + numbers
        member = np.searchsorted(ends, places, side="right")
        return self.members[member], places - (ends - self.pieces)[member]
