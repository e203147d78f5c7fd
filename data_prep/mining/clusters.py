"""Clusters of rows that are hard negatives of one another: cuts the graph of hard negatives into parts of equal size.

B3 (https://arxiv.org/abs/2505.11293): a row is connected to the rows whose targets are hard negatives of its query.
Batches are made of the parts of a cut that severs few edges, so most hard negatives are in the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.mining.rank import SubsetTargets
from data_prep.mining.settings import METIS
from vlm2vec.mined.format import NO_CLUSTER

Indices = npt.NDArray[np.int32]

_SEED = 1


@dataclass(frozen=True)
class Graph:
    """An undirected graph of rows, in METIS' format; the neighbours of each row are in ascending order.

    Attributes:
        offsets: Row i's neighbours are `neighbours[offsets[i] : offsets[i + 1]]`, int64 (rows + 1,).
        neighbours: The neighbours of all rows, int32 (2 x edges,).
        weights: 2 if each of two rows is hard for the other, 1 if only one is, int32 (2 x edges,).
    """

    offsets: npt.NDArray[np.int64]
    neighbours: Indices
    weights: Indices

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, row: int) -> tuple[Indices, Indices]:
        """A row's neighbours and their weights."""
        part = slice(self.offsets[row], self.offsets[row + 1])
        return self.neighbours[part], self.weights[part]

    @staticmethod
    def from_pairs(rows: npt.NDArray[np.integer], others: npt.NDArray[np.integer], num_rows: int) -> Graph:
        """Builds the graph from distinct pairs (row, other row whose target is hard for it), shape (pairs,) each."""
        forward = rows.astype(np.int64) * num_rows + others
        backward = others.astype(np.int64) * num_rows + rows
        both = np.sort(np.concatenate([forward, backward]))
        starts = np.flatnonzero(np.diff(both, prepend=-1))
        codes, weights = both[starts], np.diff(starts, append=len(both))
        owners = codes // num_rows
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=num_rows))]).astype(np.int64)
        return Graph(offsets, (codes % num_rows).astype(np.int32), weights.astype(np.int32))

    def kept_inside(self, cluster: Indices) -> float:
        """The share of the total edge weight that is inside clusters."""
        owners = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        inside = (cluster[owners] == cluster[self.neighbours]) & (cluster[owners] != NO_CLUSTER)
        return float(self.weights[inside].sum() / max(1, self.weights.sum()))


def row_of_target(targets: SubsetTargets, rows: npt.NDArray[np.integer], hard: Indices) -> Indices:
    """Chooses a row for each hard target of a row. If many rows share a target, they take turns.

    The r-th row of the label "cat" is paired with the r-th row of the label "dog", so that clusters contain many
    different targets.

    Args:
        targets: The subset's rows and targets.
        rows: Rows, (pairs,).
        hard: For each of them a distinct target that is hard for it, (pairs,).
    """
    by_target = np.argsort(targets.own, kind="stable")
    counts = np.bincount(targets.own, minlength=len(targets.target))
    starts = np.cumsum(counts) - counts
    turn = np.empty(len(targets), dtype=np.int64)
    turn[by_target] = np.arange(len(targets)) - starts[targets.own[by_target]]
    chosen: Indices = by_target[starts[hard] + turn[rows] % counts[hard]].astype(np.int32)
    return chosen


def cut(graph: Graph, size: int, method: str) -> Indices:
    """Cuts a graph into clusters of exactly `size` rows.

    Args:
        graph: The graph of all rows.
        size: Number of rows per cluster.
        method: "metis": METIS' multilevel cut into equal parts, which are then made exactly equal (`equalise`).
            "greedy": see `grow`.

    Returns:
        Each row's cluster, `NO_CLUSTER` for the rows that are left over (fewer than `size`), int32 (rows,).
    """
    num_clusters = len(graph) // size
    if num_clusters == 0:
        return np.full(len(graph), NO_CLUSTER, dtype=np.int32)
    if method != METIS:
        return grow(graph, size)
    if num_clusters == 1:
        return equalise(graph, np.zeros(len(graph), dtype=np.int32), size)
    import pymetis

    adjacency = pymetis.CSRAdjacency(graph.offsets, graph.neighbours)
    _, parts = pymetis.part_graph(
        num_clusters, adjacency, eweights=graph.weights, options=pymetis.Options(seed=_SEED), recursive=False
    )
    return equalise(graph, np.asarray(parts, dtype=np.int32), size)


def grow(graph: Graph, size: int) -> Indices:
    """Builds one cluster after the other. Each starts with the first free row and adds the free row with the heaviest
    edges to its members until it is full. Of equals, the first row is taken; without any edge, the first free row.
    """
    num_rows = len(graph)
    cluster = np.full(num_rows, NO_CLUSTER, dtype=np.int32)
    gain = np.zeros(num_rows, dtype=np.int64)
    first_free = 0
    for number in range(num_rows // size):
        touched, changed = np.empty(0, dtype=np.int32), []
        for _ in range(size):
            touched = touched[cluster[touched] == NO_CLUSTER]
            if len(touched):
                row = int(touched[gain[touched] == gain[touched].max()].min())
            else:
                while cluster[first_free] != NO_CLUSTER:
                    first_free += 1
                row = first_free
            cluster[row] = number
            neighbours, weights = graph.of(row)
            new = neighbours[(cluster[neighbours] == NO_CLUSTER) & (gain[neighbours] == 0)]
            gain[neighbours] += weights
            touched = np.concatenate([touched, new])
            changed.append(neighbours)
        gain[np.concatenate(changed)] = 0
    return cluster


def equalise(graph: Graph, parts: Indices, size: int) -> Indices:
    """Makes parts exactly equal: the most weakly connected rows leave parts that are too large, and join parts that are
    too small.

    Small parts are filled from the largest to the smallest, each with the free rows that have the heaviest edges to
    it; without any edge, with the first free rows. Of equals, the first is taken. There are `rows // size` clusters;
    rows that are left over get `NO_CLUSTER`.

    Args:
        graph: The graph of all rows.
        parts: The number of each row's part, below `rows // size`, int32 (rows,).
        size: Number of rows per cluster.
    """
    num_rows = len(graph)
    owners = np.repeat(np.arange(num_rows), np.diff(graph.offsets))
    inside = parts[owners] == parts[graph.neighbours]
    ties = np.bincount(owners[inside], weights=graph.weights[inside], minlength=num_rows)
    order = np.lexsort((np.arange(num_rows), -ties, parts))
    counts = np.bincount(parts, minlength=num_rows // size)
    place = np.arange(num_rows) - np.repeat(np.cumsum(counts) - counts, counts)
    cluster: Indices = parts.copy()
    cluster[order[place >= size]] = NO_CLUSTER
    too_small = np.flatnonzero(counts < size)
    for number in too_small[np.argsort(-counts[too_small], kind="stable")].tolist():
        missing = size - int(counts[number])
        members = np.flatnonzero(cluster == number)
        found = [graph.of(row) for row in members.tolist()]
        chosen = np.empty(0, dtype=np.int64)
        if found:
            neighbours = np.concatenate([each for each, _ in found])
            weights = np.concatenate([each for _, each in found])
            is_free = cluster[neighbours] == NO_CLUSTER
            candidates, inverse = np.unique(neighbours[is_free], return_inverse=True)
            gains = np.bincount(inverse, weights=weights[is_free], minlength=len(candidates))
            chosen = candidates[np.argsort(-gains, kind="stable")[:missing]].astype(np.int64)
        cluster[chosen] = number
        if len(chosen) < missing:
            free = np.flatnonzero(cluster == NO_CLUSTER)
            cluster[free[: missing - len(chosen)]] = number
    return cluster
