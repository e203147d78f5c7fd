from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.conversion import convert
from data_prep.source import SourceData
from tests.rig.convert_program import run_main
from trials.rig.hand_made_train import TABLE, converted, row, tree
from vlm2vec.errors import InputError
from vlm2vec.shards import ShardSet

ROWS = [row(number) for number in range(10)]
TEXTS = [each["pos_text"] for each in ROWS]


def with_column(name: str, values: Any) -> pa.Table:
    """The plain table with another column, or one more."""
    table = pa.Table.from_pylist(ROWS)
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, values)
    return table.append_column(name, values)


@pytest.mark.parametrize(
    "values",
    [
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array([text.encode() for text in TEXTS], pa.binary()),
        pa.array([text.encode() for text in TEXTS], pa.large_binary()),
        pa.array([text.encode() for text in TEXTS], pa.binary_view()),
    ],
    ids=lambda values: str(values.type),
)
def test_text_of_any_arrow_type_gives_the_same_shards(values: pa.Array, dataset: Path, tmp_path: Path) -> None:
    converted(dataset, tmp_path / "plain")
    pq.write_table(with_column("pos_text", values), dataset / TABLE)
    converted(dataset, tmp_path / "other")
    # Not the plan and the manifest, which hold the table's checksum.
    assert tree(tmp_path / "plain/A") == tree(tmp_path / "other/A")


def test_nulls_in_any_text_type_are_empty(dataset: Path, tmp_path: Path) -> None:
    for kind in (pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.null()):
        values = pa.nulls(10, kind)
        pq.write_table(with_column("pos_image_path", values), dataset / TABLE)
        out = tmp_path / str(kind)
        converted(dataset, out.with_name(out.name[:6]))
        assert ShardSet.open(out.with_name(out.name[:6])).read("A", 3).positive.image is None


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("pos_text", pa.array(range(10)), "column pos_text is int64, not text"),
        ("pos_text", pa.array([[text] for text in TEXTS]), "column pos_text is list<element: string>, not text"),
        ("pos_text", pa.array([b"\xff"] * 10), "cannot read the table (Invalid UTF8"),
        ("qry_inst", pa.array(["Find it."] * 10), "column qry_inst holds instructions that are not part of the texts"),
        ("tgt_instruction", pa.array([["a"]] * 10), "column tgt_instruction holds instructions"),
        ("qry_video_path", pa.array([""] * 9 + ["a.mp4"]), "column qry_video_path holds videos"),
        ("neg_texts", pa.array([["x"]] * 10), "column neg_texts holds negatives"),
    ],
)
def test_columns_that_cannot_be_read_or_would_be_lost_are_refused_in_one_line(
    name: str,
    values: pa.Array,
    message: str,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pq.write_table(with_column(name, values), dataset / TABLE)
    assert run_main(monkeypatch, dataset, tmp_path / "o") == 2
    error = capsys.readouterr().err
    assert f"{dataset / TABLE}: {message}" in error
    assert error.count("\n") == 1


def test_rows_that_the_head_of_a_table_hides_are_not_lost(dataset: Path, tmp_path: Path) -> None:
    path = dataset / TABLE
    content = path.read_bytes()
    # num_rows in the footer (thrift field 3, a zigzag varint): 10 becomes 2, the row groups still have 4 + 4 + 2.
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    place = content.index(b"\x16\x14\x19", footer) + 1
    path.write_bytes(content[:place] + b"\x04" + content[place + 1 :])
    assert pq.ParquetFile(path).metadata.num_rows == 2
    with pytest.raises(InputError, match="its metadata states 2 rows, its row groups have 10"):
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o")


def test_a_column_that_is_there_twice_is_refused(dataset: Path, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table.append_column("qry", table.column("pos_text")), dataset / TABLE)
    with pytest.raises(InputError, match=r"parquet: column qry occurs 2 times; keep one of them"):
        convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o")


def test_other_columns_are_listed_and_empty_ones_lose_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = with_column("source", pa.array(["web"] * 10)).append_column("qry_inst", pa.array(["", None] * 5))
    pq.write_table(table, dataset / TABLE)
    assert run_main(monkeypatch, dataset, tmp_path / "o") == 0
    assert "A: columns not used: source, qry_inst\n" in capsys.readouterr().out
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert report["subsets"]["A"]["unused_columns"] == ["source", "qry_inst"]
