"""Keyed permutations, evaluated for single indices."""

from __future__ import annotations

import numpy as np
import pytest

from vlm2vec.batches.permutation import permute, words


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 4096, 5000])
def test_every_index_goes_somewhere_else(size: int) -> None:
    images = permute(np.arange(size), size, "key", 7)
    assert sorted(images.tolist()) == list(range(size))
    some = np.arange(0, size, 3)
    np.testing.assert_array_equal(permute(some, size, "key", 7), images[some])


def test_keys_choose_the_permutation() -> None:
    images = [permute(np.arange(1000), 1000, *key).tolist() for key in (("a", 1), ("a", 2), ("b", 1), ("a", "1"))]
    assert len({tuple(each) for each in images}) == 4
    # Two random permutations of a thousand agree in one place on average.
    assert sum(a == b for a, b in zip(images[0], images[1], strict=True)) < 10


@pytest.mark.parametrize("size", [3, 10, 100])
def test_every_image_is_equally_likely(size: int) -> None:
    keys = 300
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), permute(np.arange(size), size, "uniform", key)] += 1
    expected = keys / size
    freedom = (size - 1) ** 2
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_part() -> None:
    """Displacements of neighbours are those of independent draws: a third of the size on average."""
    images = permute(np.arange(5000), 5000, "neighbours")
    assert 0.32 < np.abs(np.diff(images)).mean() / 5000 < 0.35


def test_words_are_a_function_of_the_key() -> None:
    assert words(5, "a").tolist() == words(9, "a").tolist()[:5]
    assert len({*words(1000, "a").tolist(), *words(1000, "b").tolist()}) == 2000


def test_permutations_and_words_never_change() -> None:
    assert permute(np.arange(8), 1000, "golden", 42).tolist() == [276, 79, 995, 669, 85, 288, 152, 560]
    assert words(2, "golden", 42).tolist() == [16356666248869468892, 7036344262514628432]
