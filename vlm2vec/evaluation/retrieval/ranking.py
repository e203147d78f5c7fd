"""Ranks corpora for queries from stored vectors, in blocks that ranks share and that survive a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm2vec.errors import InputError
from vlm2vec.evaluation.retrieval import nearest
from vlm2vec.evaluation.retrieval.collection import Collection
from vlm2vec.evaluation.retrieval.nearest import Places, Vectors
from vlm2vec.files import committed
from vlm2vec.messages.progress import progress_bar


@dataclass(frozen=True)
class VectorRows:
    """Rows of a memory-mapped matrix in a different order, copied when they are sliced.

    Attributes:
        vectors: The matrix, float32 (items, hidden).
        rows: Indices of the rows, int (rows,).
    """

    vectors: Vectors
    rows: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape, (rows, hidden)."""
        return len(self.rows), int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice | npt.NDArray[np.int64]) -> Vectors:
        return np.take(self.vectors, self.rows[key], axis=0)


@dataclass(frozen=True)
class RankedBlocks:
    """The ranked lists of a run, in the folder of its store: one file per block of queries.

    Args:
        folder: Folder of the store.
        depth: Documents per query.
        skip_own_id: Whether to leave out the document with the query's id (for BEIR's datasets whose queries are also
            documents).
    """

    folder: Path
    depth: int
    skip_own_id: bool = False

    def missing(self, collections: Sequence[Collection]) -> list[tuple[int, int]]:
        """(collection, block) of blocks that are not ranked yet."""
        return [
            (number, block)
            for number, collection in enumerate(collections)
            for block in range(_num_blocks(collection))
            if not self._path(number, block).is_file()
        ]

    def rank(
        self,
        tasks: Sequence[tuple[int, int]],
        collections: Sequence[Collection],
        vectors: Vectors,
        position: npt.NDArray[np.int32],
    ) -> None:
        """Ranks some blocks.

        Args:
            tasks: Blocks to rank, from `missing`.
            collections: All collections of the run.
            vectors: Vectors of the distinct items, may be a memory map.
            position: Row of `vectors` for every item of the run's table.

        Raises:
            InputError: The files cannot be written.
        """
        with progress_bar(
            sum(len(_queries(collections[each], block)) for each, block in tasks), "rank", "query"
        ) as bar:
            for number, block in tasks:
                collection = collections[number]
                queries = np.take(vectors, position[_queries(collection, block)], axis=0)
                documents = VectorRows(vectors, position[collection.documents])
                places, scores = nearest.nearest(queries, documents, self.depth + self.skip_own_id)
                if self.skip_own_id:
                    ids = collection.query_ids[block * nearest.QUERY_BLOCK :][: len(queries)]
                    places, scores = _without_own(places, scores, ids, collection.document_ids)
                self._write(self._path(number, block), places, scores)
                bar.update(len(queries))

    def read(self, number: int, collection: Collection) -> tuple[Places, Vectors]:
        """Reads all ranked lists of a collection: places and scores, (queries, depth) each.

        Raises:
            InputError: A file is missing or damaged.
        """
        parts = list(self._parts(number, collection))
        return np.concatenate([places for places, _ in parts]), np.concatenate([scores for _, scores in parts])

    def _parts(self, number: int, collection: Collection) -> Iterator[tuple[Places, Vectors]]:
        for block in range(_num_blocks(collection)):
            path = self._path(number, block)
            try:
                with np.load(path) as file:
                    places, scores = file["places"], file["scores"]
                shape = (len(_queries(collection, block)), self.depth)
                if places.shape != shape or scores.shape != shape or places.dtype != np.int64:
                    raise ValueError(f"lists of {places.shape}, not {shape}")
                if places.max() >= len(collection.document_ids) or places.min() < -1:
                    raise ValueError("a place outside the corpus")
            except Exception as error:  # numpy and zipfile raise different types for each kind of damage
                path.unlink(missing_ok=True)
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(f"{path}: cannot be read ({reason}); run the same command again") from error
            yield places, scores

    def _write(self, path: Path, places: Places, scores: Vectors) -> None:
        try:
            with committed(path) as temporary, temporary.open("wb") as file:
                np.savez(file, places=places, scores=scores)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot write there ({error.strerror or error})") from error

    def _path(self, number: int, block: int) -> Path:
        own = "-skip" if self.skip_own_id else ""
        return self.folder / f"ranked-{number:05d}-{self.depth}{own}-{block:06d}.npz"


def _num_blocks(collection: Collection) -> int:
    return -(-len(collection.queries) // nearest.QUERY_BLOCK)


def _queries(collection: Collection, block: int) -> npt.NDArray[np.int32]:
    return collection.queries[block * nearest.QUERY_BLOCK : (block + 1) * nearest.QUERY_BLOCK]


def _without_own(
    places: Places, scores: Vectors, query_ids: Sequence[str], document_ids: Sequence[str]
) -> tuple[Places, Vectors]:
    """Shortens each list by one: removes the document with the query's id, or else the last one."""
    for row, query_id in enumerate(query_ids):
        own = next((at for at, place in enumerate(places[row]) if place >= 0 and document_ids[place] == query_id), -1)
        if own >= 0:
            places[row, own:-1], scores[row, own:-1] = places[row, own + 1 :].copy(), scores[row, own + 1 :].copy()
    return places[:, :-1], scores[:, :-1]
