"""Exact nearest-neighbour search in a large matrix, in blocks, so that memory does not grow with the corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from vlm2vec.evaluation.retrieval.metrics import NO_DOCUMENT

# A block of scores has 256 x 16,384 numbers, 16 MiB. Blocks are on a fixed grid: the last bits of a matrix product
# depend on its shape, and results must not depend on how queries are distributed to ranks.
QUERY_BLOCK = 256
_CORPUS_BLOCK = 16_384
# Extra candidates that are scored again in float64: rounding in the float32 product may swap neighbours.
_SPARE = 16

Vectors = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


class Rows(Protocol):
    """A matrix that is read by slices or row indices, such as an array or a memory map, float32 (rows, hidden)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, (rows, hidden)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any:
        """The chosen rows as an array."""


def nearest(
    queries: Vectors, corpus: Rows, depth: int, progress: Callable[[int], object] | None = None
) -> tuple[Places, Vectors]:
    """Finds the documents with the largest dot products for every query.

    Candidates are found in float32 and scored again in float64; equal scores (as float32) are ordered by place in the
    corpus. If more than `_SPARE` documents tie exactly at the end of the list, the order in which the blocks find them
    decides, which is the same in every run on one machine.

    Args:
        queries: Query vectors, float32 (queries, hidden), in whole blocks of `QUERY_BLOCK` except for the last.
        corpus: Document vectors, float32 (documents, hidden).
        depth: Documents per query; fewer are found if the corpus is smaller.
        progress: Called after each block with its number of queries.

    Returns:
        Places in the corpus, best first, padded with `NO_DOCUMENT`, int64 (queries, depth); and their scores, padded
        with NaN, float32 (queries, depth).

    Raises:
        ValueError: `depth` is below 1, or the widths differ.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    if queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, documents {corpus.shape[1]}")
    places = np.full((len(queries), depth), NO_DOCUMENT, dtype=np.int64)
    scores = np.full((len(queries), depth), np.nan, dtype=np.float32)
    for start in range(0, len(queries), QUERY_BLOCK):
        block = np.array(queries[start : start + QUERY_BLOCK])
        found = _candidates(torch.from_numpy(block), corpus, min(depth + _SPARE, len(corpus)))
        rows = slice(start, start + len(block))
        for query, own_places, own_scores, candidates in zip(
            block, places[rows], scores[rows], found.numpy(), strict=True
        ):
            candidates = np.sort(candidates)  # reads a memory map forwards, and keeps equal scores in corpus order
            exact = (corpus[candidates].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
            best = np.argsort(-exact, kind="stable")[:depth]
            own_places[: len(best)], own_scores[: len(best)] = candidates[best], exact[best]
        if progress is not None:
            progress(len(block))
    return places, scores


def _candidates(queries: torch.Tensor, corpus: Rows, count: int) -> torch.Tensor:
    """Places of the `count` largest float32 products of each query, unordered, int64 (queries, count)."""
    best_scores = queries.new_empty((len(queries), 0))
    best_places = torch.empty((len(queries), 0), dtype=torch.int64)
    for start in range(0, len(corpus), _CORPUS_BLOCK):
        documents = torch.from_numpy(np.array(corpus[start : start + _CORPUS_BLOCK]))
        scores, places = (queries @ documents.T).topk(min(count, len(documents)), dim=1)
        scores, places = torch.cat([best_scores, scores], dim=1), torch.cat([best_places, places + start], dim=1)
        best_scores, kept = scores.topk(min(count, scores.shape[1]), dim=1)
        best_places = places.gather(1, kept)
    return best_places
