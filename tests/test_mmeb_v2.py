"""MMEB-V2's datasets: as many as the leaderboard has, found by either name."""

from __future__ import annotations

from collections import Counter

from vlm2vec.mmeb_v2 import VIDEO_GROUPS, VIDEO_SETS, VISDOC_GROUPS, VISDOC_SETS, visdoc_set


def test_there_are_as_many_sets_as_the_leaderboard_has() -> None:
    assert Counter(each.group for each in VISDOC_SETS) == dict(zip(VISDOC_GROUPS, (10, 4, 6, 4), strict=True))
    assert Counter(each.group for each in VIDEO_SETS) == dict(zip(VIDEO_GROUPS, (5, 5, 5, 3), strict=True))
    names = [*(each.name for each in VISDOC_SETS), *(each.name for each in VIDEO_SETS)]
    assert len(set(names)) == 24 + 18


def test_visual_documents_are_found_by_their_own_and_their_repositories_names() -> None:
    for each in VISDOC_SETS:
        assert visdoc_set(each.name) is each
        for repository in each.repositories:
            assert visdoc_set(repository.partition("/")[2]) is each
    found = visdoc_set("syntheticDocQA_energy_test_beir")
    assert found is not None
    assert found.name == "ViDoRe_syntheticDocQA_energy"
    split = visdoc_set("VisRAG-Ret-Test-MP-DocVQA")
    assert split is not None
    assert split.split == "train"
    assert visdoc_set("my documents") is None
