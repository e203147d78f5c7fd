from __future__ import annotations

import pytest

from vlm2vec.errors import InputError
from vlm2vec.evaluation.data.selection import groups_of, recognise, select
from vlm2vec.mmeb import MINI_MMEB, MMEB

ALL_MMEB = [dataset.name for dataset in MMEB.eval_datasets]


def test_a_folder_is_recognised_by_its_datasets() -> None:
    assert recognise(["GQA", "own"]) is MMEB
    assert recognise([dataset.name for dataset in MINI_MMEB.eval_datasets]) is MINI_MMEB
    assert recognise(["own", "mine"]) is None


def test_groups() -> None:
    assert groups_of("GQA", MMEB) == ("vqa", "OOD")
    assert groups_of("CIRR", MMEB) == ("retrieval", "IND")
    assert groups_of("own", MMEB) == groups_of("GQA", None) == ("other", None)


@pytest.mark.parametrize(("selection", "count"), [("all", 36), ("IND", 20), ("OOD", 16), ("vqa", 10), ("grounding", 4)])
def test_selections_over_the_whole_benchmark(selection: str, count: int) -> None:
    names, absent = select([selection], ALL_MMEB, MMEB)
    assert (len(names), absent) == (count, [])


def test_selections_over_a_partial_folder_say_what_is_absent() -> None:
    found = ["own", "RefCOCO", "GQA", "MSCOCO"]
    assert select(["grounding"], found, MMEB) == (["MSCOCO", "RefCOCO"], ["RefCOCO-Matching", "Visual7W-Pointing"])
    assert select(["GQA", "own"], found, MMEB) == (["GQA", "own"], [])
    assert select(["other"], found, MMEB) == (["own"], [])
    names, absent = select(["all"], found, MMEB)
    assert names == ["GQA", "MSCOCO", "RefCOCO", "own"]
    assert len(absent) == 33
    assert select(["all"], ["b", "a"], None) == (["a", "b"], [])


@pytest.mark.parametrize("selection", ["CIRR", "retrieval", "nonsense"])
def test_a_selection_without_a_dataset_in_the_folder_is_refused(selection: str) -> None:
    with pytest.raises(InputError, match=rf"^{selection}: .* it has GQA, own"):
        select([selection], ["own", "GQA"], MMEB)
