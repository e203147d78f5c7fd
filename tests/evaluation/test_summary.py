from __future__ import annotations

import pytest

from vlm2vec.errors import InputError
from vlm2vec.evaluation.metrics import DatasetScore
from vlm2vec.evaluation.summary import groups_of, recognise, select, summarise
from vlm2vec.mmeb import MINI_MMEB, MMEB

ALL_MMEB = [dataset.name for dataset in MMEB.eval_datasets]


def score(acc: float, chance: float = 0.1) -> DatasetScore:
    return DatasetScore(acc, int(acc * 10), 10, chance, 0, 0, acc, acc, acc, acc)


def test_a_folder_is_recognised_by_its_datasets():
    assert recognise(["GQA", "own"]) is MMEB
    assert recognise([dataset.name for dataset in MINI_MMEB.eval_datasets]) is MINI_MMEB
    assert recognise(["own", "mine"]) is None


def test_groups():
    assert groups_of("GQA", MMEB) == ("vqa", "OOD")
    assert groups_of("CIRR", MMEB) == ("retrieval", "IND")
    assert groups_of("own", MMEB) == groups_of("GQA", None) == ("other", None)


@pytest.mark.parametrize(("selection", "count"), [("all", 36), ("IND", 20), ("OOD", 16), ("vqa", 10), ("grounding", 4)])
def test_selections_over_the_whole_benchmark(selection: str, count: int):
    names, absent = select([selection], ALL_MMEB, MMEB)
    assert (len(names), absent) == (count, [])


def test_selections_over_a_partial_folder_say_what_is_absent():
    found = ["own", "RefCOCO", "GQA", "MSCOCO"]
    assert select(["grounding"], found, MMEB) == (["MSCOCO", "RefCOCO"], ["RefCOCO-Matching", "Visual7W-Pointing"])
    assert select(["GQA", "own"], found, MMEB) == (["GQA", "own"], [])
    assert select(["other"], found, MMEB) == (["own"], [])
    names, absent = select(["all"], found, MMEB)
    assert names == ["GQA", "MSCOCO", "RefCOCO", "own"]
    assert len(absent) == 33
    assert select(["all"], ["b", "a"], None) == (["a", "b"], [])


@pytest.mark.parametrize("selection", ["CIRR", "retrieval", "nonsense"])
def test_a_selection_without_a_dataset_in_the_folder_is_refused(selection: str):
    with pytest.raises(InputError, match=rf"^{selection}: .* it has GQA, own"):
        select([selection], ["own", "GQA"], MMEB)


def test_means_are_unweighted_over_datasets():
    scores = {"ImageNet-1K": score(0.2, 0.001), "ObjectNet": score(0.4), "GQA": score(0.9), "own": score(1.0)}
    summary = summarise(scores, MMEB)
    means = {group: mean["acc"] for group, mean in summary["meta_tasks"].items()}
    assert means == pytest.approx({"classification": 0.3, "vqa": 0.9, "other": 1.0})
    assert summary["IND"]["acc"] == pytest.approx(0.2)
    assert summary["OOD"]["acc"] == pytest.approx(0.65)
    assert summary["overall"]["acc"] == pytest.approx(2.5 / 4)
    assert summary["meta_tasks"]["classification"]["chance"] == pytest.approx(0.0505)
    sizes = {
        group: (summary[group]["num_datasets"], summary[group]["num_datasets_of_benchmark"])
        for group in ("IND", "overall")
    }
    assert sizes == {"IND": (1, 20), "overall": (4, 36)}
    assert summary["num_rows"] == 40
    assert summary["datasets"]["GQA"]["meta_task"] == "vqa"


def test_own_datasets_have_neither_ind_nor_ood():
    summary = summarise({"own": score(0.5)}, None)
    assert summary["benchmark"] is None
    assert "IND" not in summary
    assert summary["overall"]["num_datasets_of_benchmark"] == 0
