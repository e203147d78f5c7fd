"""The exact search compared with a full sort: several blocks, ties, and parts of the queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlm2vec.evaluation.retrieval import nearest as module
from vlm2vec.evaluation.retrieval.metrics import NO_DOCUMENT
from vlm2vec.evaluation.retrieval.nearest import nearest


def unit_rows(seed: int, rows: int, width: int = 24) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, width))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), dtype=np.float32)


def by_full_sort(queries: np.ndarray, corpus: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    scores = (queries.astype(np.float64) @ corpus.astype(np.float64).T).astype(np.float32)
    places = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return places, np.take_along_axis(scores, places, axis=1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CORPUS_BLOCK", 100)
    monkeypatch.setattr(module, "QUERY_BLOCK", 8)


@pytest.mark.parametrize("documents", [1, 7, 100, 101, 1234])
def test_equals_a_full_sort(documents: int) -> None:
    queries, corpus = unit_rows(1, 21), unit_rows(2, documents)
    places, scores = nearest(queries, corpus, 10)
    expected, expected_scores = by_full_sort(queries, corpus, 10)
    found = min(10, documents)
    np.testing.assert_array_equal(places[:, :found], expected)
    np.testing.assert_allclose(scores[:, :found], expected_scores, rtol=1e-6)
    assert (places[:, found:] == NO_DOCUMENT).all()
    assert np.isnan(scores[:, found:]).all()


def test_equal_documents_come_in_the_corpus_order() -> None:
    corpus = np.repeat(unit_rows(3, 60), 5, axis=0)  # five copies each, over block borders
    places, _ = nearest(unit_rows(4, 9), corpus, 12)
    assert (places[:, :5] == places[:, :1] + np.arange(5)).all()
    assert (places[:, 5:10] == places[:, 5:6] + np.arange(5)).all()


def test_blocks_of_queries_give_the_same_bytes_alone() -> None:
    queries, corpus = unit_rows(5, 30), unit_rows(6, 777)
    whole = nearest(queries, corpus, 5)
    parts = [nearest(queries[start : start + 8], corpus, 5) for start in range(0, 30, 8)]
    for number in (0, 1):
        assert np.concatenate([part[number] for part in parts]).tobytes() == whole[number].tobytes()


def test_a_memory_map_and_progress(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, unit_rows(7, 250))
    done: list[int] = []
    places, _ = nearest(unit_rows(8, 20), np.load(path, mmap_mode="r"), 3, done.append)
    np.testing.assert_array_equal(places, by_full_sort(unit_rows(8, 20), unit_rows(7, 250), 3)[0])
    assert done == [8, 8, 4]


def test_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1, not 0"):
        nearest(unit_rows(1, 2), unit_rows(2, 2), 0)
    with pytest.raises(ValueError, match="24 dimensions, documents 8"):
        nearest(unit_rows(1, 2), unit_rows(2, 2, 8), 1)
