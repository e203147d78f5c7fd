"""Rankings, rules and clusters compared with naive code and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.mining import rank
from data_prep.mining.clusters import Graph, cut, equalise, row_of_target
from data_prep.mining.negatives import KnownPositives, ascending, choose, lists_of
from data_prep.mining.rank import NO_TARGET, Ranked, SubsetTargets, rank_block, unit_vectors
from data_prep.mining.settings import GREEDY, METIS, MiningSettings, SkipRanks, SubsetSettings
from vlm2vec.errors import InputError

METHODS = (METIS, GREEDY)


@pytest.mark.numeric
@pytest.mark.parametrize("num_candidates", [7, 500])
def test_the_nearest_targets_are_those_of_a_full_sort(num_candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "_VECTORS_AT_A_TIME", 100)
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(400, 16)).astype(np.float32) * generator.uniform(0.1, 9, (400, 1)).astype(
        np.float32
    )
    targets = SubsetTargets.of(np.arange(300, dtype=np.int32), generator.integers(300, 400, 300).astype(np.int32))
    unit = unit_vectors(vectors, np.arange(400, dtype=np.int32))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    corpus = unit_vectors(vectors, targets.target)
    found = rank_block(unit[:300], corpus, targets.own, num_candidates)
    scores = unit[:300].astype(np.float64) @ corpus.astype(np.float64).T
    np.testing.assert_allclose(found.positive, scores[np.arange(300), targets.own], rtol=1e-6)
    scores[np.arange(300), targets.own] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, : min(num_candidates, len(corpus) - 1)]
    np.testing.assert_array_equal(found.targets, expected)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, expected, axis=1), rtol=1e-6)


def test_equal_scores_come_in_the_order_of_rows() -> None:
    corpus = np.eye(4, dtype=np.float32)[[0, 1, 1, 1, 2]]
    found = rank_block(corpus[:1] + corpus[1:2], corpus, np.array([0], dtype=np.int32), 4)
    assert found.targets.tolist() == [[1, 2, 3, 4]]


def test_distinct_targets_are_named_by_their_first_row() -> None:
    targets = SubsetTargets.of(np.array([9, 8, 7, 6], dtype=np.int32), np.array([5, 2, 5, 0], dtype=np.int32))
    assert targets.target.tolist() == [5, 2, 0]
    assert targets.first.tolist() == [0, 1, 3]
    assert targets.own.tolist() == [0, 1, 0, 2]


# Rows 0 and 2 ask the same: each one's target is a positive of the other. Row i has target number i.
TARGETS = SubsetTargets.of(
    np.array([10, 11, 10, 12, 13, 14, 15], np.int32), np.array([20, 22, 21, 9, 8, 7, 6], np.int32)
)
RANKED = Ranked(
    targets=np.array([[2, 3, 4, 5, 6], [0, 3, 4, 5, NO_TARGET], [6, 5, 4, 3, 0]], dtype=np.int32),
    scores=np.array([[0.95, 0.9, 0.8, 0.7, 0.1], [0.6, 0.5, 0.4, 0.3, np.nan], [0.5, 0.4, 0.3, 0.2, 0.1]], np.float32),
    positive=np.array([0.85, 0.9, 0.45], dtype=np.float32),
)


@pytest.mark.parametrize(
    ("skip_ranks", "margin", "num_negatives", "negatives", "false_negatives"),
    [
        (0, None, 2, [[3, 4], [0, 3], [6, 5]], [[2], [], [0]]),
        (2, None, 2, [[4, 5], [4, 5], [4, 3]], [[2], [], [0]]),
        (0, 0.0, 2, [[4, 5], [0, 3], [5, 4]], [[2, 3], [], [0, 6]]),
        (0, 0.1, 9, [[5, 6], [0, 3, 4, 5], [4, 3]], [[2, 3, 4], [], [0, 5, 6]]),
        (4, 0.35, 9, [[6], [], []], [[2, 3, 4, 5], [0], [0, 3, 4, 5, 6]]),
        (1, -0.07, 1, [[3], [3], [5]], [[2], [], [0]]),
    ],
)
def test_the_rules_on_a_hand_made_case(
    skip_ranks: int,
    margin: float | None,
    num_negatives: int,
    negatives: list[list[int]],
    false_negatives: list[list[int]],
) -> None:
    known = KnownPositives(TARGETS).mask(TARGETS.query[:3], RANKED.targets)
    assert known.tolist() == [[True] + 4 * [False], 5 * [False], 4 * [False] + [True]]
    chosen = choose(RANKED, known, SubsetSettings(skip_ranks, margin, num_negatives, 5, 0, None))
    found = lists_of([chosen.negative], [RANKED.targets])
    false = ascending(lists_of([chosen.false], [RANKED.targets]))
    assert [found[row].tolist() for row in range(3)] == negatives
    assert [false[row].tolist() for row in range(3)] == false_negatives


def test_lists_run_on_over_blocks() -> None:
    masks = [np.array([[True, False], [False, False]]), np.array([[True, True]])]
    lists = lists_of(masks, [np.array([[1, 2], [3, 4]], np.int32), np.array([[5, 6]], np.int32)])
    assert [lists[row].tolist() for row in range(3)] == [[1], [], [5, 6]]


def test_rows_of_a_shared_target_are_taken_in_turn() -> None:
    own = np.array([0, 0, 0, 1, 1], dtype=np.int32)
    targets = SubsetTargets(np.arange(5, dtype=np.int32), own, np.array([0, 1], np.int32), np.array([0, 3], np.int32))
    rows, hard = np.array([0, 1, 2, 3, 4]), np.array([1, 1, 1, 0, 0], dtype=np.int32)
    assert row_of_target(targets, rows, hard).tolist() == [3, 4, 3, 0, 1]


def groups(num_groups: int, size: int, noise: int, seed: int = 0) -> tuple[Graph, np.ndarray]:
    """Rows of planted groups, shuffled, each joined to all of its own and to a few others."""
    generator = np.random.default_rng(seed)
    member = generator.permutation(np.repeat(np.arange(num_groups), size))
    pairs = {(a, b) for a in range(len(member)) for b in np.flatnonzero(member == member[a]).tolist() if a != b}
    others = generator.integers(0, len(member), (noise * len(member), 2)).tolist()
    pairs |= {(a, b) for a, b in others if a != b}
    rows, ends = (np.array(column) for column in zip(*sorted(pairs), strict=True))
    return Graph.from_pairs(rows, ends, len(member)), member


def test_edges_in_both_directions_weigh_double() -> None:
    graph = Graph.from_pairs(np.array([0, 1, 2, 2]), np.array([1, 0, 0, 1]), 4)
    assert [part.tolist() for part in graph.of(0)] == [[1, 2], [2, 1]]
    assert [part.tolist() for part in graph.of(2)] == [[0, 1], [1, 1]]
    assert [part.tolist() for part in graph.of(3)] == [[], []]
    assert graph.kept_inside(np.array([0, 0, 1, 1], dtype=np.int32)) == pytest.approx(4 / 8)


@pytest.mark.parametrize("method", METHODS)
def test_planted_groups_are_found(method: str) -> None:
    graph, member = groups(num_groups=12, size=8, noise=1)
    cluster = cut(graph, 8, method)
    assert np.bincount(cluster).tolist() == [8] * 12
    assert len(set(zip(member.tolist(), cluster.tolist(), strict=True))) == 12
    np.testing.assert_array_equal(cut(graph, 8, method), cluster)


def test_both_methods_keep_much_more_inside_than_chance() -> None:
    """Groups of 11 rows do not fit into clusters of 8."""
    graph, _ = groups(num_groups=10, size=11, noise=2)
    chance = graph.kept_inside((np.arange(110) // 8).astype(np.int32))
    kept = {method: graph.kept_inside(cut(graph, 8, method)) for method in METHODS}
    assert min(kept.values()) > 4 * chance, (kept, chance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("num_rows", "size"), [(5, 8), (8, 8), (13, 8), (50, 7), (64, 16)])
def test_clusters_have_exactly_their_size_whatever_the_graph(method: str, num_rows: int, size: int) -> None:
    lonely = Graph.from_pairs(np.array([0]), np.array([1]), num_rows)
    cluster = cut(lonely, size, method)
    assert np.bincount(cluster[cluster >= 0], minlength=num_rows // size).tolist() == [size] * (num_rows // size)
    assert (cluster < 0).sum() == num_rows % size
    assert num_rows < size or cluster[0] == cluster[1]


def test_rows_with_the_weakest_ties_leave_parts_that_are_too_large() -> None:
    pairs = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1), (3, 4), (4, 5)]
    rows, ends = (np.array(column) for column in zip(*pairs, strict=True))
    graph = Graph.from_pairs(rows, ends, 6)
    assert equalise(graph, np.array([0, 0, 0, 0, 1, 1], dtype=np.int32), 3).tolist() == [0, 0, 0, 1, 1, 1]


def test_skip_ranks_by_subset_meta_task_and_share() -> None:
    published = SkipRanks.parse([])
    assert [published.of(name, 1000, 100) for name in ("WebQA", "MSCOCO", "OK-VQA", "N24News", "own")] == [
        30,
        30,
        70,
        0,
        30,
    ]
    assert published.of("OK-VQA", 11, 100) == 7
    assert published.of("WebQA", 1000, 200) == 60
    assert published.of("WebQA", 1, 100) == 0
    given = SkipRanks.parse(["5", "vqa=2", "OK-VQA=1"])
    assert [given.of(name, 4, 100) for name in ("OK-VQA", "ChartQA", "N24News")] == [1, 2, 5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x"], "--skip_ranks x: expected a number"),
        (["=3"], "--skip_ranks =3: expected a number"),
        (["vqa=-1"], "expected a number"),
        (["3", "4"], "a number without a name is given twice"),
        (["vqa=3", "vqa=4"], "vqa is given twice"),
        (["grounding=3"], "no subset that is mined has this meta-task"),
        (["WebQa=3"], "no such subset is mined; there are WebQA, N24News"),
    ],
)
def test_impossible_skip_ranks_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SkipRanks.parse(words).refuse_unused(["WebQA", "N24News"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 3.0}, "--margin 3.0"),
        ({"cluster_size": 1}, "--cluster_size 1"),
        ({"skip_ranks": SkipRanks(None, {"vqa": 100})}, "--skip_ranks vqa=100: leaves none of --num_candidates 100"),
        ({"skip_ranks": SkipRanks(120, {})}, "--skip_ranks 120: leaves none"),
        ({"num_negatives": 101}, "--num_negatives 101: more than --num_candidates 100"),
        ({"num_negatives": 0, "cluster_size": 0}, "nothing to mine"),
    ],
)
def test_contradicting_settings_are_refused(changes: dict[str, object], message: str) -> None:
    settings = {
        **{"skip_ranks": SkipRanks(None, {}), "margin": None, "num_negatives": 8, "num_candidates": 100},
        **{"cluster_size": 32, "cluster_method": GREEDY},
    }
    with pytest.raises(InputError, match=message):
        MiningSettings(**{**settings, **changes}).refuse_impossible()  # type: ignore[arg-type]
