"""Mined clusters of rows, which a pass over a subset keeps together."""

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
    """Every subset's rows in clusters of equal size, and the rows left over.

    A pass over a subset is cut into pieces of `size` rows: every cluster is one, and the rows left over form pieces of
    their own. Where those do not fill whole pieces, one cluster of the pass, a different one in every pass, is mixed
    into them: so what a pass leaves out (fewer than `size` rows) differs, and no row is left out for ever.

    Attributes:
        size: Rows of a cluster.
        rows: For each subset its positions: cluster after cluster, then those left over, int32.
        counts: For each subset how many clusters it has.
    """

    size: int
    rows: tuple[npt.NDArray[np.int32], ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Mapping[str, npt.NDArray[np.int32]], size: int) -> Clusters:
        """From the cluster of each row.

        Args:
            numbers: For each subset, in the order's order, the number of each row's cluster, -1 for a row left over.
            size: Rows of a cluster.

        Raises:
            InputError: A cluster has another number of rows.
        """
        rows, counts = [], []
        for name, cluster in numbers.items():
            by_cluster = np.argsort(cluster, kind="stable").astype(np.int32)
            left_over = int((cluster < 0).sum())
            found, sizes = np.unique(cluster[by_cluster[left_over:]], return_counts=True)
            for number in found[sizes != size][:1].tolist():
                raise InputError(
                    f"subset {name}: cluster {number} has {int((cluster == number).sum())} rows where all have {size}; "
                    "mine the clusters again"
                )
            rows.append(np.concatenate([by_cluster[left_over:], by_cluster[:left_over]]))
            counts.append(len(found))
        return cls(size, tuple(rows), tuple(counts))

    @property
    def left_over(self) -> int:
        """Rows of all subsets that belong to no cluster."""
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
        """The rows at some places of one pass over a subset.

        Args:
            subset: Which one.
            pieces: Number of each row's piece, in [0, rows // size), shape (n,).
            within: Its place in the piece, in [0, size), shape (n,).
            key: Of the random choices: the same for all passes over the subset.
            number: Of the pass, counted from 0.
        """
        rows, count, size = self.rows[subset], self.counts[subset], self.size
        loose = np.arange(count * size, len(rows))
        dissolved = count  # none
        if len(loose) % size and count:
            turn, place = divmod(number, count)
            dissolved = int(permute(np.array([place]), count, "dissolved", *key, turn)[0])
            loose = np.concatenate([np.arange(dissolved * size, (dissolved + 1) * size), loose])
        whole = count - (dissolved < count)
        places = (pieces + (pieces >= dissolved)) * size + within
        outside = pieces >= whole
        if outside.any():
            offsets = (pieces[outside] - whole) * size + within[outside]
            places[outside] = loose[permute(offsets, len(loose), "left over", *key, number)]
        positions: Indices = rows[places].astype(np.int64)
        return positions
