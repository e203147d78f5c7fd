"""Mined clusters: groups of rows that a pass over a subset keeps together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlm2vec.batches.permutation import permute
from vlm2vec.errors import InputError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Clusters:
    """Every subset's rows in clusters of equal size, and the rows outside clusters.

    A pass over a subset is split into pieces of `size` rows: every cluster is one piece, and rows outside clusters form
    further pieces. If those rows do not fill whole pieces, one cluster, a different one in every pass, is mixed into
    them. So the fewer than `size` rows that a pass leaves out differ, and no row is always left out.

    Attributes:
        size: Rows per cluster.
        rows: Positions of each subset, cluster after cluster, then rows outside clusters, int32.
        counts: Number of clusters of each subset.
    """

    size: int
    rows: tuple[npt.NDArray[np.int32], ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Mapping[str, npt.NDArray[np.int32]], size: int) -> Clusters:
        """Builds the clusters from the cluster number of each row.

        Args:
            numbers: Cluster number of each row by subset, in the subsets' order; -1 for a row outside clusters.
            size: Rows per cluster.

        Raises:
            InputError: A cluster does not have `size` rows.
        """
        rows, counts = [], []
        for name, cluster in numbers.items():
            by_cluster = np.argsort(cluster, kind="stable").astype(np.int32)
            left_over = int((cluster < 0).sum())
            found, sizes = np.unique(cluster[by_cluster[left_over:]], return_counts=True)
            for number in found[sizes != size][:1].tolist():
                raise InputError(
                    f"subset {name}: cluster {number} has {int((cluster == number).sum())} rows, not {size}; mine the "
                    "clusters again"
                )
            rows.append(np.concatenate([by_cluster[left_over:], by_cluster[:left_over]]))
            counts.append(len(found))
        return cls(size, tuple(rows), tuple(counts))

    @property
    def left_over(self) -> int:
        """Number of rows outside clusters, over all subsets."""
        return sum(map(len, self.rows)) - self.size * sum(self.counts)

    @property
    def digest(self) -> str:
        """A hash of which rows belong together."""
        digest = hashlib.sha256(repr((self.size, self.counts)).encode())
        for rows in self.rows:
            digest.update(rows.astype("<i4").tobytes())
        return digest.hexdigest()

    def positions(
        self, subset: int, pieces: Indices, within: Indices, key: Sequence[str | int], number: int
    ) -> Indices:
        """Positions of the rows at some places of one pass over a subset.

        Args:
            subset: Index of the subset.
            pieces: Number of each row's piece, in [0, rows // size), shape (n,).
            within: Place of each row in its piece, in [0, size), shape (n,).
            key: Key of the random choices, the same for all passes over the subset.
            number: Number of the pass, counted from 0.
        """
        rows, count, size = self.rows[subset], self.counts[subset], self.size
        loose = np.arange(count * size, len(rows))
        dissolved = count  # no cluster is dissolved
        if len(loose) % size and count:
            # Over `count` passes, a permutation dissolves every cluster once.
            turn, place = divmod(number, count)
            dissolved = int(permute(np.array([place]), count, "dissolved", *key, turn)[0])
            loose = np.concatenate([np.arange(dissolved * size, (dissolved + 1) * size), loose])
        whole = count - (dissolved < count)  # pieces from here on are of loose rows
        places = (pieces + (pieces >= dissolved)) * size + within  # skips the dissolved cluster
        outside = pieces >= whole
        if outside.any():
            offsets = (pieces[outside] - whole) * size + within[outside]
            places[outside] = loose[permute(offsets, len(loose), "left over", *key, number)]
        positions: Indices = rows[places].astype(np.int64)
        return positions
