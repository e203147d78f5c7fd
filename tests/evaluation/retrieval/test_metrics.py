"""Retrieval metrics compared with trec_eval's code, with their definitions, and on hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlm2vec.evaluation.retrieval.metrics import NO_DOCUMENT, RankedLists, Relevance, mean_with_interval

CORPUS = 40
DEPTH = 15


def relevance_of(judged: list[dict[int, float]]) -> Relevance:
    return Relevance(
        np.cumsum([0, *(len(each) for each in judged)]).astype(np.int64),
        np.array([document for each in judged for document in each], dtype=np.int64),
        np.array([grade for each in judged for grade in each.values()], dtype=np.float64),
    )


@pytest.fixture(scope="module")
def random_lists() -> tuple[np.ndarray, list[dict[int, float]]]:
    random = np.random.default_rng(7)
    ranked = np.stack([random.permutation(CORPUS)[:DEPTH] for _ in range(60)]).astype(np.int64)
    judged: list[dict[int, float]] = []
    for _ in range(len(ranked)):
        documents = random.permutation(CORPUS)[: random.integers(1, 20)]
        judged.append({int(document): float(random.integers(1, 5)) for document in documents})
    return ranked, judged


def test_equals_trec_eval(random_lists: tuple[np.ndarray, list[dict[int, float]]]) -> None:
    trec = pytest.importorskip("pytrec_eval")
    ranked, judged = random_lists
    qrels = {f"q{n}": {f"d{doc}": int(grade) for doc, grade in each.items()} for n, each in enumerate(judged)}
    run = {f"q{n}": {f"d{doc}": float(DEPTH - place) for place, doc in enumerate(row)} for n, row in enumerate(ranked)}
    names = {"ndcg_cut.5,10", "recall.5,10", "P.5,10", "map_cut.5,10", "recip_rank", "success.1,5,10"}
    expected = trec.RelevanceEvaluator(qrels, names).evaluate(run)
    lists = RankedLists(ranked, relevance_of(judged), CORPUS)
    ours = {
        **{f"ndcg_cut_{k}": lists.ndcg(k) for k in (5, 10)},
        **{f"recall_{k}": lists.recall(k) for k in (5, 10)},
        **{f"P_{k}": lists.precision(k) for k in (5, 10)},
        **{f"map_cut_{k}": lists.average_precision(k) for k in (5, 10)},
        **{f"success_{k}": lists.hit(k) for k in (1, 5, 10)},
        "recip_rank": lists.reciprocal_rank(DEPTH),
    }
    for name, values in ours.items():
        reference = [expected[f"q{n}"][name] for n in range(len(ranked))]
        np.testing.assert_allclose(values, reference, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("cutoff", [1, 3, 10, 100])
def test_exponential_gain_and_reachable_precision_by_their_definitions(
    random_lists: tuple[np.ndarray, list[dict[int, float]]], cutoff: int
) -> None:
    ranked, judged = random_lists
    lists = RankedLists(ranked, relevance_of(judged), CORPUS)
    ndcg, precision = lists.ndcg(cutoff, "exponential"), lists.average_precision(cutoff, "reachable")
    for query, (row, grades) in enumerate(zip(ranked.tolist(), judged, strict=True)):
        found = sum((2 ** grades.get(doc, 0) - 1) / math.log2(place + 2) for place, doc in enumerate(row[:cutoff]))
        best = sorted(grades.values(), reverse=True)[:cutoff]
        ideal = sum((2**grade - 1) / math.log2(place + 2) for place, grade in enumerate(best))
        assert ndcg[query] == pytest.approx(found / ideal, rel=1e-12)
        hits, total = 0, 0.0
        for place, doc in enumerate(row[:cutoff]):
            if doc in grades:
                hits += 1
                total += hits / (place + 1)
        assert precision[query] == pytest.approx(total / min(len(grades), cutoff), rel=1e-12)


def test_short_lists_and_queries_without_relevant_documents_score_zero() -> None:
    ranked = np.array([[3, NO_DOCUMENT], [3, 1], [NO_DOCUMENT, NO_DOCUMENT]], dtype=np.int64)
    lists = RankedLists(ranked, relevance_of([{3: 1.0}, {}, {0: 2.0}]), CORPUS)
    for values in (lists.ndcg(5), lists.recall(5), lists.reciprocal_rank(5), lists.average_precision(5), lists.hit(5)):
        assert values.tolist() == [1.0, 0.0, 0.0]
    assert lists.precision(5).tolist() == [0.2, 0.0, 0.0]
    nothing = RankedLists(ranked, relevance_of([{}, {}, {}]), CORPUS)
    assert nothing.ndcg(5).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("judged", "problem"),
    [([{1: 0.0}], "positive"), ([{1: math.inf}], "finite"), ([{1: math.nan}], "positive")],
)
def test_grades_must_be_positive(judged: list[dict[int, float]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        relevance_of(judged)


def test_judgements_that_do_not_fit_are_refused() -> None:
    one = np.ones(2)
    with pytest.raises(ValueError, match="twice"):
        Relevance(np.array([0, 2]), np.array([4, 4]), one)
    with pytest.raises(ValueError, match="offsets"):
        Relevance(np.array([0, 3]), np.array([4, 5]), one)
    with pytest.raises(ValueError, match="ranked lists"):
        RankedLists(np.zeros((2, 1), dtype=np.int64), relevance_of([{1: 1.0}]), CORPUS)


def test_the_interval_holds_the_mean_and_shrinks_with_queries() -> None:
    random = np.random.default_rng(3)
    few, many = random.random(20), random.random(2_000)
    for values in (few, many):
        mean, (low, high) = mean_with_interval(values)
        assert 0 <= low < mean < high <= 1
        assert mean == pytest.approx(values.mean(), rel=1e-12)
    widths = [high - low for _, (low, high) in map(mean_with_interval, (few, many))]
    assert widths[1] < widths[0] / 5
    assert mean_with_interval(np.array([1.0]))[1][0] < 1.0  # one query proves little
    with pytest.raises(ValueError, match="no queries"):
        mean_with_interval(np.array([]))
