from __future__ import annotations

import pytest

from vlm2vec.errors import InputError
from vlm2vec.mmeb import META_TASKS, MINI_MMEB, MMEB, PUBLISHED_SCORES, Benchmark, meta_task_of

# The paper's recipe caps every subset at 50,000 rows and calls the result "662K".
PAPER_CAP, PAPER_ROWS = 50_000, 662_000


def test_mmeb_has_the_papers_counts() -> None:
    assert len(MMEB.train_subsets) == 20
    assert [len(MMEB.select([task])) for task in META_TASKS] == [10, 10, 12, 4]
    assert [len(MMEB.select([group])) for group in ("IND", "OOD", "all")] == [20, 16, 36]
    assert sum(min(subset.rows, PAPER_CAP) for subset in MMEB.train_subsets) == pytest.approx(PAPER_ROWS, abs=500)


@pytest.mark.parametrize("benchmark", [MMEB, MINI_MMEB], ids=lambda benchmark: benchmark.name)
def test_benchmarks_are_consistent(benchmark: Benchmark) -> None:
    train_names = [subset.name for subset in benchmark.train_subsets]
    eval_names = [dataset.name for dataset in benchmark.eval_datasets]
    assert len(set(train_names)) == len(train_names)
    assert len(set(eval_names)) == len(eval_names)
    trained_on = [dataset.train_subset for dataset in benchmark.eval_datasets if dataset.in_distribution]
    assert sorted(str(name) for name in trained_on) == sorted(train_names)
    for dataset in benchmark.eval_datasets:
        if dataset.train_subset is not None:
            assert benchmark.train_subset(dataset.train_subset).meta_task == dataset.meta_task
    assert {subset.meta_task for subset in benchmark.train_subsets} == set(META_TASKS)
    assert {dataset.meta_task for dataset in benchmark.eval_datasets} == set(META_TASKS)


def test_miniature_has_every_modality_combination_of_mmeb() -> None:
    def combinations(benchmark: Benchmark) -> set[tuple[str, str]]:
        return {(subset.query_modality, subset.target_modality) for subset in benchmark.train_subsets}

    assert combinations(MINI_MMEB) == combinations(MMEB)


def test_the_meta_task_of_a_subset_is_known_for_both_benchmarks_and_no_other() -> None:
    assert [meta_task_of(name) for name in ("OK-VQA", "PairVQA", "MSCOCO")] == ["vqa", "vqa", "grounding"]
    assert meta_task_of("my-photos") is None


def test_selection_keeps_the_benchmarks_order_and_drops_repeats() -> None:
    assert MMEB.select(["RefCOCO", "MSCOCO", "grounding", "N24News"]) == (
        "N24News",
        "MSCOCO",
        "RefCOCO",
        "RefCOCO-Matching",
        "Visual7W-Pointing",
    )
    assert MMEB.select(["IND", "OOD"]) == MMEB.select(["all"])
    assert MMEB.select([]) == ()


def test_unknown_names_propose_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^ImageNet_1K: no such evaluation dataset .* ImageNet-1K\?$"):
        MMEB.select(["ImageNet_1K"])
    with pytest.raises(InputError, match="did you mean ImageNet_1K"):
        MMEB.train_subset("ImageNet-1K")
    assert MMEB.dataset("ImageNet-1K").chance == 0.001


def test_published_averages_fit_their_parts() -> None:
    sizes = [len(MMEB.select([task])) for task in META_TASKS]
    for scores in PUBLISHED_SCORES.values():
        parts = (scores.classification, scores.vqa, scores.retrieval, scores.grounding)
        by_task = sum(size * part for size, part in zip(sizes, parts, strict=True)) / 36
        assert by_task == pytest.approx(scores.overall, abs=0.15)
        assert (20 * scores.ind + 16 * scores.ood) / 36 == pytest.approx(scores.overall, abs=0.15)
