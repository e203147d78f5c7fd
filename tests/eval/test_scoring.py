from __future__ import annotations

import numpy as np
import pytest

from eval.datasets import EvalRows
from eval.scoring import score_rows

# Items 0 to 5 as unit vectors in the plane; the angle decides every score.
ANGLES = np.deg2rad([0, 10, 40, 90, 10, 180])
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def rows_of(*rows: tuple[int, list[int]]) -> EvalRows:
    queries = np.asarray([query for query, _ in rows])
    return EvalRows("hand", queries, tuple(np.asarray(candidates) for _, candidates in rows))


def test_precision_at_1_counts_rows_whose_truth_is_nearest():
    score, chosen = score_rows(VECTORS, rows_of((0, [1, 2, 3]), (0, [2, 1, 3]), (3, [2, 1]), (0, [5, 3, 2, 1])))
    assert (score.acc, score.num_correct, score.num_pred) == (0.5, 2, 4)
    assert chosen.tolist() == [1, 1, 2, 1]
    assert score.chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 2 + 1 / 4) / 4)
    assert (score.num_tied, score.num_duplicate_truth) == (0, 0)


def test_rows_may_share_a_query_and_candidates_may_be_the_query_itself():
    score, chosen = score_rows(VECTORS, rows_of((0, [1, 2]), (0, [0, 1]), (0, [3, 1])))
    assert score.num_correct == 2
    assert chosen.tolist() == [1, 0, 1]


def test_a_tie_with_the_truth_is_lost():
    # Items 1 and 4 have the same vector; argmax would return index 0 and count the row.
    score, chosen = score_rows(VECTORS, rows_of((0, [1, 4, 3]), (0, [1, 3])))
    assert (score.num_correct, score.num_tied) == (1, 1)
    assert chosen.tolist() == [4, 1]


def test_a_tie_is_found_despite_float32_rounding():
    vectors = VECTORS.copy()
    vectors[4] = vectors[1] * np.float32(1 - 2e-7)
    score, _ = score_rows(vectors, rows_of((0, [1, 4, 3])))
    assert (score.num_correct, score.num_tied) == (0, 1)


def test_the_tolerance_scales_with_unnormalised_vectors():
    small = (VECTORS * np.float32(1e-4)).astype(np.float32)
    score, _ = score_rows(small, rows_of((0, [1, 2, 3])))
    assert (score.num_correct, score.num_tied) == (1, 0)


def test_a_duplicate_of_the_truth_is_the_truth():
    score, chosen = score_rows(VECTORS, rows_of((0, [1, 1, 2, 3]), (0, [2, 2, 1])))
    assert (score.num_correct, score.num_tied, score.num_duplicate_truth) == (1, 0, 2)
    assert chosen.tolist() == [1, 1]
    assert score.chance == pytest.approx((2 / 4 + 2 / 3) / 2)


def test_a_single_candidate_is_certain_and_its_chance_says_so():
    score, _ = score_rows(VECTORS, rows_of((0, [5])))
    assert (score.acc, score.chance) == (1.0, 1.0)
