from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from trials.rig.hand_made_eval import read, row, write_dataset
from vlm2vec.evaluation.data.datasets import EvalRows
from vlm2vec.evaluation.metrics import DatasetScore, interval_of_mean, score_of_ranks
from vlm2vec.evaluation.scoring import RowScores, predictions_table, score_of_table, score_rows

pytestmark = pytest.mark.numeric

# Items 0 to 5 as unit vectors in the plane; the angle decides every score.
ANGLES = np.deg2rad([0, 10, 40, 90, 10, 180])
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def rows_of(*rows: tuple[int, list[int]]) -> EvalRows:
    candidates = [entry for _, entries in rows for entry in entries]
    offsets = np.cumsum([0, *(len(entries) for _, entries in rows)])
    return EvalRows("hand", np.asarray([query for query, _ in rows]), np.asarray(candidates), offsets)


def ranked(vectors: np.ndarray, *rows: tuple[int, list[int]], strict_original: bool = False) -> RowScores:
    return score_rows(vectors, np.arange(len(vectors), dtype=np.int32), rows_of(*rows), strict_original)


def test_precision_at_1_counts_rows_whose_truth_is_nearest() -> None:
    scores = ranked(VECTORS, (0, [1, 2, 3]), (0, [2, 1, 3]), (3, [2, 1]), (0, [5, 3, 2, 1]))
    total = scores.total()
    assert scores.ranks.tolist() == [1, 2, 1, 4]
    assert (total.acc, total.num_correct, total.num_pred) == (0.5, 2, 4)
    assert scores.top[:, 0].tolist() == [0, 1, 0, 3]
    assert scores.top[3].tolist() == [3, 2, 1, 0, -1]
    assert total.chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 2 + 1 / 4) / 4)
    assert (total.num_tied, total.num_duplicate_truth) == (0, 0)
    assert total.mrr == pytest.approx((1 + 1 / 2 + 1 + 1 / 4) / 4)


def test_rows_may_share_a_query_and_candidates_may_be_the_query_itself() -> None:
    scores = ranked(VECTORS, (0, [1, 2]), (0, [0, 1]), (0, [3, 1]))
    assert scores.ranks.tolist() == [1, 1, 2]


def test_a_tie_with_the_truth_is_lost_and_counted_only_as_the_original_does() -> None:
    # Items 1 and 4 have the same vector; argmax returns index 0 and counts the row.
    scores = ranked(VECTORS, (0, [1, 4, 3]), (0, [1, 3]))
    assert (scores.total().num_correct, scores.total().num_tied) == (1, 1)
    assert scores.top[:, 0].tolist() == [1, 0]
    strict = ranked(VECTORS, (0, [1, 4, 3]), (0, [1, 3]), strict_original=True)
    assert (strict.total().num_correct, strict.total().num_tied) == (2, 1)
    assert strict.top[:, 0].tolist() == [0, 0]


def test_a_collapsed_model_loses_every_row_and_wins_all_in_the_original() -> None:
    same = np.repeat(VECTORS[1:2], 6, axis=0)
    rows = [(0, [1, 2, 3]), (4, [5, 1])]
    assert ranked(same, *rows).ranks.tolist() == [3, 2]
    assert ranked(same, *rows).total().num_tied == 2
    assert ranked(same, *rows, strict_original=True).total().acc == 1.0


def test_a_tie_is_found_despite_float32_rounding() -> None:
    vectors = VECTORS.copy()
    vectors[4] = vectors[1] * np.float32(1 - 2e-7)
    total = ranked(vectors, (0, [1, 4, 3])).total()
    assert (total.num_correct, total.num_tied) == (0, 1)


def test_the_tolerance_scales_with_unnormalised_vectors() -> None:
    small = (VECTORS * np.float32(1e-4)).astype(np.float32)
    total = ranked(small, (0, [1, 2, 3])).total()
    assert (total.num_correct, total.num_tied) == (1, 0)


@pytest.mark.parametrize("strict_original", [False, True])
def test_a_duplicate_of_the_truth_is_the_truth(strict_original: bool) -> None:
    scores = ranked(VECTORS, (0, [1, 1, 2, 3]), (0, [2, 2, 1]), strict_original=strict_original)
    total = scores.total()
    assert (total.num_correct, total.num_tied, total.num_duplicate_truth) == (1, 0, 2)
    assert scores.ranks.tolist() == [1, 2]
    assert scores.top[:, 0].tolist() == [0, 2]
    assert total.chance == pytest.approx((2 / 4 + 2 / 3) / 2)


def test_items_of_one_position_are_one_item() -> None:
    """Two paths to the same image: different items of the table, one vector."""
    position = np.asarray([0, 1, 2, 1], dtype=np.int32)
    scores = score_rows(VECTORS, position, rows_of((0, [1, 3, 2])))
    assert scores.duplicate_truth.tolist() == [True]
    assert scores.ranks.tolist() == [1]


def test_a_single_candidate_is_certain_and_its_chance_says_so() -> None:
    total = ranked(VECTORS, (0, [5])).total()
    assert (total.acc, total.chance) == (1.0, 1.0)


def test_metrics_equal_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 8)).astype(np.float32)
    rows = [(query, generator.permutation(np.arange(20, 60))[:30].tolist()) for query in range(20)]
    total = ranked(vectors, *rows).total()
    values = np.stack([vectors[candidates] @ vectors[query] for query, candidates in rows])
    truth = np.zeros_like(values)
    truth[:, 0] = 1
    assert total.ndcg10 == pytest.approx(ndcg_score(truth, values, k=10))
    assert total.mrr == pytest.approx(label_ranking_average_precision_score(truth, values))
    for k, figure in ((1, total.acc), (5, total.hit5), (10, total.hit10)):
        expected = top_k_accuracy_score(np.zeros(20, dtype=int), values, k=k, labels=np.arange(30))
        assert figure == pytest.approx(expected)


@pytest.mark.parametrize("strict_original", [False, True])
def test_ranks_are_those_of_the_definition(strict_original: bool) -> None:
    """Row by row as the docstring has it, over vectors with ties and the truth several times."""
    generator = np.random.default_rng(1)
    vectors = generator.integers(-2, 3, size=(40, 3)).astype(np.float32)
    rows = [(int(generator.integers(40)), generator.integers(40, size=12).tolist()) for _ in range(200)]
    scores = ranked(vectors, *rows, strict_original=strict_original)
    for number, (query, candidates) in enumerate(rows):
        values = vectors[candidates] @ vectors[query]
        others = values[np.asarray(candidates) != candidates[0]]
        beaten_by = (others > values[0]) if strict_original else (others >= values[0])
        assert scores.ranks[number] == 1 + beaten_by.sum()
        assert scores.tied[number] == ((others == values[0]).any() and not (others > values[0]).any())
        num_truths = candidates.count(candidates[0])
        assert scores.duplicate_truth[number] == (num_truths > 1)
        assert scores.chances[number] == num_truths / len(candidates)


def share_of(won: int, rows: int) -> DatasetScore:
    ranks = np.asarray([1] * won + [2] * (rows - won))
    return score_of_ranks(ranks, np.ones(rows), np.zeros(rows, bool), np.zeros(rows, bool))


@pytest.mark.parametrize(("won", "rows"), [(137, 200), (10, 10), (0, 10), (1, 1)])
def test_one_datasets_interval_is_wilsons(won: int, rows: int) -> None:
    expected = scipy.stats.binomtest(won, rows).proportion_ci(method="wilson")
    assert interval_of_mean({"A": share_of(won, rows)}) == pytest.approx([expected.low, expected.high], rel=1e-12)


def test_the_interval_of_a_mean() -> None:
    score = share_of(137, 200)
    low, high = interval_of_mean({"A": score})
    # Two like datasets: the same mean, narrower by the root of two.
    both = interval_of_mean({"A": score, "B": score})
    assert np.subtract(both, score.acc) == pytest.approx(np.subtract([low, high], score.acc) / np.sqrt(2))
    certain = interval_of_mean({"A": share_of(200, 200), "B": share_of(200, 200)})
    assert certain[1] == 1
    assert 0.98 < certain[0] < 1
    # Datasets that differ: near the bootstrap's, which resamples each dataset's rows by themselves.
    generator = np.random.default_rng(0)
    means = sum(generator.binomial(rows, won / rows, 100_000) / rows for won, rows in ((137, 200), (450, 500))) / 2
    mixed = interval_of_mean({"A": share_of(137, 200), "B": share_of(450, 500)})
    assert mixed == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)


def test_predictions_name_what_was_chosen(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "A", [row("north", ["up", "down", "it's"]), row("", ["down", "up"])])
    (rows,), items = read(path)
    place = {items.text(index): index for index in range(len(items))}
    vectors = np.zeros((len(items), 2), dtype=np.float32)
    vectors[[place["north"], place["up"]]] = [0, 1]
    vectors[place["down"]] = [0, -1]
    vectors[place["it's"]] = [1, 0]
    vectors[place[""]] = [0, 1]
    scores = score_rows(vectors, np.arange(len(items), dtype=np.int32), rows)
    table = predictions_table(rows, scores, items)
    assert table["dataset"].to_pylist() == ["A", "A"]
    assert table["rank"].to_pylist() == [1, 2]
    assert table["top_text"].to_pylist() == [["up", "it's", "down", None, None], ["up", "down", None, None, None]]
    assert table["top_index"].to_pylist() == [[0, 2, 1, None, None], [1, 0, None, None, None]]
    assert table["truth_text"].to_pylist() == ["up", "down"]
    assert table["query_text"].to_pylist() == ["north", ""]
    assert score_of_table(table) == scores.total()
