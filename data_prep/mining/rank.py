"""Ranks every distinct target of a subset for each of its queries, block by block, and keeps the nearest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlm2vec.evaluation.retrieval.nearest import QUERY_BLOCK, nearest
from vlm2vec.evaluation.vector_store import VectorStore, arrays, expect
from vlm2vec.files import committed

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]

# Queries per block: a multiple of the block size of `nearest`, so that results do not depend on who computes them.
ROWS_A_BLOCK = 64 * QUERY_BLOCK
NO_TARGET = -1
_VECTORS_AT_A_TIME = 4096


@dataclass(frozen=True)
class SubsetTargets:
    """A subset's rows, as numbers of encoded items.

    Attributes:
        query: Row of each query in the vector store, int32 (rows,).
        own: Number of each row's target among the distinct targets, int32 (rows,).
        target: Row of each distinct target in the vector store, in the order of first occurrence, int32 (targets,).
        first: First row that has each distinct target, int32 (targets,).
    """

    query: Indices
    own: Indices
    target: Indices
    first: Indices

    @staticmethod
    def of(query: Indices, target: Indices) -> SubsetTargets:
        """Creates it from the vector store's rows of each query and target."""
        _, first, inverse = np.unique(target, return_index=True, return_inverse=True)
        appearance = np.argsort(first)
        number_of = np.empty(len(first), dtype=np.int32)
        number_of[appearance] = np.arange(len(first), dtype=np.int32)
        own: Indices = number_of[inverse]
        return SubsetTargets(query, own, target[first[appearance]], first[appearance].astype(np.int32))

    def __len__(self) -> int:
        return len(self.query)

    def blocks(self) -> list[range]:
        """The ranges of rows that are ranked and stored together."""
        return [range(start, min(start + ROWS_A_BLOCK, len(self))) for start in range(0, len(self), ROWS_A_BLOCK)]


@dataclass(frozen=True)
class Ranked:
    """The nearest targets of a block of rows, without each row's own target.

    Attributes:
        targets: Numbers of distinct targets, nearest first, then `NO_TARGET`, int32 (rows, candidates).
        scores: Their cosines with the query, then NaN, float32 (rows, candidates).
        positive: Cosine of the query with the row's own target, float32 (rows,).
    """

    targets: Indices
    scores: Vectors
    positive: Vectors


class RankStore:
    """Stores ranked blocks on disk, so that little is lost by a kill; any rank may write any block.

    Args:
        folder: A folder for one teacher, one set of shards and one number of candidates.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store = VectorStore(folder)

    def targets_file(self, subset: str) -> Path:
        """The file with the unit vectors of a subset's distinct targets."""
        return self.folder / f"targets-{subset}.npy"

    def has(self, subset: str, block: int) -> bool:
        """Whether a block is ranked."""
        return self._path(subset, block).is_file()

    def write(self, subset: str, block: int, ranked: Ranked) -> None:
        """Stores a block."""
        with self._store.writing(), committed(self._path(subset, block)) as path, path.open("wb") as file:
            np.savez(file, targets=ranked.targets.ravel(), scores=ranked.scores.ravel(), positive=ranked.positive)

    def read(self, subset: str, block: int, num_rows: int, num_targets: int) -> Ranked:
        """Reads a block.

        Args:
            subset: The block's subset.
            block: The block's number.
            num_rows: The number of rows that it must have.
            num_targets: The number of distinct targets of the subset.

        Raises:
            InputError: The file is damaged.
        """
        path = self._path(subset, block)
        with self._store.reading(path):
            found = arrays(path, {"targets": np.int32, "scores": np.float32, "positive": np.float32})
            targets, scores, positive = found["targets"], found["scores"], found["positive"]
            expect(len(positive) == num_rows and len(targets) == len(scores), "not one entry for each row")
            expect(len(targets) % num_rows == 0, "rows with different numbers of candidates")
            expect(not len(targets) or (targets.min() >= NO_TARGET and targets.max() < num_targets), "no such target")
        return Ranked(targets.reshape(num_rows, -1), scores.reshape(num_rows, -1), positive)

    def write_targets(self, subset: str, vectors: Vectors, rows: Indices) -> None:
        """Writes the unit vectors of some rows of the vector store to `targets_file`."""
        with self._store.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            with committed(self.targets_file(subset)) as path:
                gathered = np.lib.format.open_memmap(path, "w+", np.float32, (len(rows), vectors.shape[1]))
                for start in range(0, len(rows), _VECTORS_AT_A_TIME):
                    part = slice(start, start + _VECTORS_AT_A_TIME)
                    gathered[part] = unit_vectors(vectors, rows[part])
                gathered.flush()
                del gathered

    def read_targets(self, subset: str) -> Vectors:
        """Reads what `write_targets` wrote, memory-mapped."""
        path = self.targets_file(subset)
        with self._store.reading(path):
            vectors: Vectors = np.load(path, mmap_mode="r")
        return vectors

    def remove_targets(self, subsets: Sequence[str]) -> None:
        """Removes what `write_targets` wrote, once everything is ranked."""
        for name in subsets:
            self.targets_file(name).unlink(missing_ok=True)

    def _path(self, subset: str, block: int) -> Path:
        return self.folder / f"ranks-{subset}-{block:05d}.npz"


def unit_vectors(vectors: Vectors, rows: Indices) -> Vectors:
    """Some rows of a (memory-mapped) matrix, scaled to length 1 in float64 and rounded once."""
    order = np.argsort(rows, kind="stable")  # read the memory map in ascending order
    gathered = np.empty((len(rows), vectors.shape[1]), dtype=np.float64)
    gathered[order] = vectors[rows[order]]
    norms = np.sqrt(np.einsum("ij,ij->i", gathered, gathered))
    gathered /= np.maximum(norms, np.finfo(np.float64).tiny)[:, None]
    return gathered.astype(np.float32)


def rank_block(
    queries: Vectors,
    targets: Vectors,
    own: Indices,
    num_candidates: int,
    progress: Callable[[int], object] | None = None,
) -> Ranked:
    """Finds the nearest targets of some rows exactly; see `nearest`, also for the order of equal scores.

    Args:
        queries: Unit vectors, float32 (rows, hidden).
        targets: Unit vectors of all distinct targets, float32 (targets, hidden); may be a memory map.
        own: Each row's own target, int32 (rows,).
        num_candidates: How many other targets to find, if there are as many.
        progress: Called with the number of rows that were completed.
    """
    depth = min(num_candidates, len(targets) - 1) + 1
    places, scores = nearest(queries, targets, depth, progress)
    is_own = places == own[:, None]
    order = np.argsort(is_own, axis=1, kind="stable")[:, : depth - 1]
    positive = np.empty(len(own), dtype=np.float32)
    for start in range(0, len(own), _VECTORS_AT_A_TIME):
        part = slice(start, start + _VECTORS_AT_A_TIME)
        mine = targets[own[part]].astype(np.float64)
        positive[part] = np.einsum("ij,ij->i", queries[part].astype(np.float64), mine)
    return Ranked(
        np.take_along_axis(places, order, axis=1).astype(np.int32), np.take_along_axis(scores, order, axis=1), positive
    )
