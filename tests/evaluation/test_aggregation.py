from __future__ import annotations

import pytest

from vlm2vec.evaluation.aggregation import summarise
from vlm2vec.evaluation.metrics import DatasetScore
from vlm2vec.mmeb import MMEB


def score(acc: float, chance: float = 0.1) -> DatasetScore:
    return DatasetScore(acc, int(acc * 10), 10, chance, 0, 0, acc, acc, acc, acc)


def test_means_are_unweighted_over_datasets() -> None:
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


def test_own_datasets_have_neither_ind_nor_ood() -> None:
    summary = summarise({"own": score(0.5)}, None)
    assert summary["benchmark"] is None
    assert "IND" not in summary
    assert summary["overall"]["num_datasets_of_benchmark"] == 0
