from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.conversion import Tolerance, convert
from data_prep.source import SourceData
from data_prep.verify import verify
from tests.rig.convert_program import run_main
from trials.rig.hand_made_train import converted, row, write_rows
from vlm2vec.errors import InputError
from vlm2vec.shards import ShardSet

THIN = "images/A/Train/thin.png"
# What a row holds; the side and the reason that are reported.
CASES = {
    "no tag": ({"qry": "What is this?"}, "query", "no image tag"),
    "two tags": ({"qry": "<|image_1|><|image_1|>"}, "query", "exactly once"),
    "wrong number": ({"qry": "<|image_2|> what?"}, "query", "<|image_2|>"),
    "blank beside an image": ({"qry": " \n"}, "query", "no image tag"),
    "thin": ({"qry_image_path": THIN}, "query", "an image of 1 x 300 pixels is too thin"),
    "nothing at all": ({"qry": "", "qry_image_path": "", "pos_text": ""}, "query", "empty"),
    "empty query": ({"qry": "", "qry_image_path": ""}, "query", "empty"),
    "only a stray tag": ({"qry_image_path": "", "qry": "<|image_1|>\n"}, "query", "has no content"),
    "blank target": ({"pos_text": " \u200b"}, "positive", "has no content"),
    "target without tag": ({"pos_image_path": "images/A/Train/0.png"}, "positive", "no image tag"),
    "negative without tag": (
        {"neg_text": "wrong", "neg_image_path": "images/A/Train/0.png"},
        "negative",
        "no image tag",
    ),
}


def write(dataset: Path, changes: dict[str, str]) -> None:
    """Ten rows, of which the fifth has the changes."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((300, 1, 3), np.uint8)).save(buffer, "PNG")
    (dataset / THIN).write_bytes(buffer.getvalue())
    rows = [row(number) for number in range(10)]
    rows[5] |= changes
    names = dict.fromkeys(name for each in rows for name in each)
    write_rows(dataset, [{name: each.get(name, "") for name in names} for each in rows])


@pytest.mark.parametrize("case", CASES)
def test_a_row_that_no_model_can_be_trained_on_is_named_and_left_out(
    case: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, side, reason = CASES[case]
    write(dataset, changes)
    assert run_main(monkeypatch, dataset, tmp_path / "o", "--rows_per_shard", "4") == 3
    shown = capsys.readouterr().out
    assert "not complete: 1 of 10 rows of A unusable, more than --max_unusable 0.05" in shown
    assert "or leave them out with --max_unusable 0.1" in shown
    assert f"A/00000005 ({side}): " in shown
    with pytest.raises(InputError, match="no manifest"):
        ShardSet.open(tmp_path / "o")

    for _ in range(2):  # written now; taken from the sidecar
        assert run_main(monkeypatch, dataset, tmp_path / "o", "--rows_per_shard", "4", "--max_unusable", "0.1") == 0
        report = json.loads((tmp_path / "o/report.json").read_text())
        for part in (report["total"], report["subsets"]["A"]):
            assert (part["rows"], part["samples"], part["unusable_rows"]) == (10, 9, 1)
            assert part["skipped"] == {f"unusable {side}": 1}
            (line,) = part["first_unusable"]
            assert line.startswith(f"A/00000005 ({side}): ")
            assert reason in line
    sidecar = json.loads((tmp_path / "o/A/A-00001.json").read_text())
    assert [(each["key"], each["row"], each["side"]) for each in sidecar["unusable_rows"]] == [("A/00000005", 5, side)]
    kept = ShardSet.open(tmp_path / "o").columns("A")["row"].tolist()
    assert kept == [number for number in range(10) if number != 5]
    assert verify(tmp_path / "o").problems == ()


def test_images_and_rows_have_limits_of_their_own(dataset: Path, tmp_path: Path) -> None:
    write(dataset, CASES["no tag"][0])
    (dataset / "images/A/Train/1.png").unlink()
    assert (
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o", tolerance=Tolerance(max_missing=9)).manifest
        is None
    )
    assert (
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o", tolerance=Tolerance(max_unusable=1.0)).manifest
        is None
    )
    assert (
        converted(dataset, tmp_path / "o", tolerance=Tolerance(max_missing=1, max_unusable=0.1))
        .subsets["A"]
        .num_samples
        == 6
    )


def test_a_slip_among_many_rows_is_left_out_and_reported(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row in twenty is within the default limit; it is named on screen and in the report all the same."""
    write_rows(dataset, [row(number) if number != 5 else row(5, qry="no tag") for number in range(20)])
    assert run_main(monkeypatch, dataset, tmp_path / "o") == 0
    assert "A/00000005 (query): " in capsys.readouterr().out
    assert json.loads((tmp_path / "o/report.json").read_text())["total"]["unusable_rows"] == 1
    assert ShardSet.open(tmp_path / "o").num_samples == {"A": 19}


def test_a_subset_without_a_usable_row_is_refused_whatever_may_be_missing(dataset: Path, tmp_path: Path) -> None:
    write_rows(dataset, [row(number, qry="no tag") for number in range(10)])
    with pytest.raises(InputError, match=r"A: no usable row \(left out: \{'unusable query': 10\}\)"):
        convert(
            SourceData(dataset, dataset, ["A"]), tmp_path / "o", tolerance=Tolerance(max_missing=100, max_unusable=1.0)
        )
    assert not (tmp_path / "o/manifest.json").exists()


def test_a_stray_tag_and_an_image_without_text_are_legal(dataset: Path, tmp_path: Path) -> None:
    rows = [row(0, qry_image_path=""), row(1, qry=""), row(2, pos_text="", pos_image_path="images/A/Train/1.png")]
    write_rows(dataset, rows)
    assert converted(dataset, tmp_path / "o").subsets["A"].num_samples == 3
