"""Folders that the original's eval.py wrote, in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import report
from vlm2vec.errors import InputError


def write_original(folder: Path, won: dict[str, tuple[int, int]]) -> Path:
    folder.mkdir()
    for name, (correct, rows) in won.items():
        score = {"acc": correct / rows, "num_correct": correct, "num_pred": rows}
        (folder / f"{name}_score.json").write_text(json.dumps(score))
        (folder / f"{name}_pred.txt").write_text("('a', '')\n")
    return folder


def test_a_folder_of_the_original_beside_its_own_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_original(tmp_path / "one", {"GQA": (512, 1000), "CIRR": (250, 1000), "mine": (1, 2)})
    two = write_original(tmp_path / "two", {"GQA": (600, 1000)})
    report.main([str(one), str(two)])
    text = (two / "report.md").read_text()
    assert "| GQA | OOD | 0.1 | 51.2 | **60.0** | +8.8 |" in text
    assert "| mine |  | - | 50.0 | - | - |" in text
    assert "| **overall (mean of 3 of 36)** |  | **-** | **42.1** | **60.0** | **-** |" in text
    assert "| one | 42.1 |" in text
    assert "| - | - | - | - |" in text
    assert "one: scored by the original's program, which counts a tie with the truth as right; 2,002 rows." in text
    assert "one" in (two / "report.html").read_text()
    assert "1 dataset, 1,000 rows" in (two / "report.html").read_text()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"acc": 2.0, "num_correct": 2, "num_pred": 1}', '{"acc": 0.5, "num_correct": 9, "num_pred": 10}'],
)
def test_a_damaged_score_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_original(tmp_path / "one", {"GQA": (512, 1000)})
    (folder / "GQA_score.json").write_text(content)
    with pytest.raises(InputError, match=r"GQA_score\.json") as refused:
        report.main([str(folder)])
    assert "\n" not in str(refused.value)
