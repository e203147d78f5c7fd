"""Keeping rows with the same target in different batches."""

from __future__ import annotations

import numpy as np

from vlm2vec.batches.distinct import count_duplicates, separate
from vlm2vec.batches.permutation import permute, words

BATCH = 32
ROWS = 100 * BATCH


def shuffled_groups(num_groups: int) -> np.ndarray:
    return permute(np.arange(ROWS), ROWS, "groups") % num_groups


def batches(values: np.ndarray) -> list[list[int]]:
    return [sorted(values[start : start + BATCH].tolist()) for start in range(0, ROWS, BATCH)]


def test_all_that_can_be_separated_is_separated() -> None:
    groups = shuffled_groups(3)
    targets = np.arange(ROWS) % 200  # 16 rows a target, 100 batches
    before = count_duplicates(targets[permute(np.arange(ROWS), ROWS, "rows")], BATCH)
    targets = targets[permute(np.arange(ROWS), ROWS, "rows")]
    rows, left = separate(targets, groups, BATCH, "seed")
    assert before > 100
    assert left == count_duplicates(targets[rows], BATCH) == 0
    assert sorted(rows.tolist()) == list(range(ROWS))
    assert batches(groups[rows]) == batches(groups)  # every batch keeps its mixture
    np.testing.assert_array_equal(groups[rows], groups)  # place by place, so that units stay whole


def test_what_cannot_be_separated_is_counted() -> None:
    """300 rows with one target fit 100 batches only once each: at least 200 are left."""
    targets = np.arange(ROWS)
    targets[permute(np.arange(300), ROWS, "same")] = 0
    rows, left = separate(targets, shuffled_groups(1), BATCH, "seed")
    assert 200 <= left == count_duplicates(targets[rows], BATCH) < 220
    assert sorted(rows.tolist()) == list(range(ROWS))


def test_a_group_of_one_batch_is_left_alone() -> None:
    targets = np.arange(ROWS)
    groups = np.zeros(ROWS, dtype=np.int64)
    groups[:2], targets[:2] = 1, 7  # the only two rows of their group, in one batch
    targets[7] = 0
    rows, left = separate(targets, groups, BATCH, "seed")
    assert left == 1
    np.testing.assert_array_equal(rows, np.arange(ROWS))


def test_the_choice_is_a_function_of_the_key() -> None:
    targets, groups = (words(ROWS, "targets") % 150).astype(np.int64), shuffled_groups(2)
    first, again, other = (separate(targets, groups, BATCH, key)[0] for key in ("a", "a", "b"))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
