from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trials.rig.hand_made_eval import pairs, read, row, write_dataset
from vlm2vec.errors import InputError
from vlm2vec.evaluation.data import datasets
from vlm2vec.evaluation.data.datasets import find_datasets, read_data, read_dataset, resolve_datasets
from vlm2vec.evaluation.data.items import ItemTableBuilder
from vlm2vec.evaluation.data.warnings import dataset_warnings
from vlm2vec.mmeb import MMEB


def test_equal_items_share_an_index_within_and_across_datasets(tmp_path: Path) -> None:
    first = write_dataset(tmp_path, "A", [row("q", ["x", "y"]), row("q", ["y", "x"])])
    second = write_dataset(tmp_path, "B", [row("y", ["q", "z"])])
    (rows_a, rows_b), items = read(first, second)
    assert pairs(items, range(len(items))) == [("q", ""), ("x", ""), ("y", ""), ("z", "")]
    assert rows_a.queries.tolist() == [0, 0]
    assert [rows_a.of_row(each).tolist() for each in range(2)] == [[1, 2], [2, 1]]
    assert rows_b.queries.tolist() == [2]
    assert rows_b.of_row(0).tolist() == [0, 3]
    assert items.use(3) == f"{second} row 0"


def test_the_same_text_with_another_image_is_another_item(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "A", [row("", ["t", "t", ""], "a.jpg", ["a.jpg", "", "a.jpg"])])
    (rows,), items = read(path)
    assert pairs(items, rows.queries) == [("", "a.jpg")]
    assert pairs(items, rows.of_row(0)) == [("t", "a.jpg"), ("t", ""), ("", "a.jpg")]


@pytest.mark.parametrize("text", ["", "one text", None])
def test_a_single_text_is_used_for_all_images(tmp_path: Path, text: str) -> None:
    path = tmp_path / "test-00000-of-00001.parquet"
    table = {"qry_text": ["q"], "qry_img_path": [""], "tgt_text": pa.array([text], pa.string())}
    pq.write_table(pa.table({**table, "tgt_img_path": [["a.jpg", "b.jpg"]]}), path)
    (rows,), items = read(path)
    assert pairs(items, rows.of_row(0)) == [(text or "", "a.jpg"), (text or "", "b.jpg")]


def test_absent_images_may_be_null_or_an_empty_string(tmp_path: Path) -> None:
    path = tmp_path / "test-00000-of-00001.parquet"
    table = {"qry_text": ["q"], "qry_img_path": pa.array([None], pa.string()), "tgt_text": [["x", "y"]]}
    for absent in (pa.array([[None, None]], pa.list_(pa.string())), pa.array([""]), pa.array([None], pa.string())):
        pq.write_table(pa.table({**table, "tgt_img_path": absent}), path)
        (rows,), items = read(path)
        assert pairs(items, rows.of_row(0)) == [("x", ""), ("y", "")]


def test_a_column_of_nulls_has_any_type(tmp_path: Path) -> None:
    path = tmp_path / "test-00000-of-00001.parquet"
    table = {"qry_text": ["q"], "qry_img_path": pa.nulls(1), "tgt_text": [["x"]], "tgt_img_path": pa.nulls(1)}
    pq.write_table(pa.table(table), path)
    (rows,), items = read(path)
    assert pairs(items, [rows.queries[0], *rows.of_row(0)]) == [("q", ""), ("x", "")]


def test_parts_are_read_in_order_and_rows_count_within_their_file(tmp_path: Path) -> None:
    folder = tmp_path / "A"
    folder.mkdir()
    for part, query in enumerate(["first", "second"]):
        pq.write_table(pa.Table.from_pylist([row(query, ["x"])]), folder / f"test-0000{part}-of-00002.parquet")
    found = find_datasets(tmp_path, "test")
    builder = ItemTableBuilder()
    rows = read_dataset("A", found["A"], builder)
    items = builder.build()
    assert pairs(items, rows.queries) == [("first", ""), ("second", "")]
    assert items.use(rows.queries[1]) == f"{found['A'][1]} row 0"


def test_long_datasets_with_lists_of_all_lengths(tmp_path: Path) -> None:
    """Read in pieces, each row's candidates must stay its own, whatever the piece."""
    generator = np.random.default_rng(0)
    lists = [[f"t{text}" for text in generator.integers(0, 50, size=generator.integers(1, 9))] for _ in range(200)]
    path = write_dataset(tmp_path, "A", [row(f"q{number}", texts) for number, texts in enumerate(lists)])
    (rows,), items = read(path)
    assert [items.text(query) for query in rows.queries] == [f"q{number}" for number in range(200)]
    assert [[items.text(each) for each in rows.of_row(number)] for number in range(200)] == lists
    assert items.use(rows.queries[130]) == f"{path} row 130"
    assert len(items) == 200 + len({text for texts in lists for text in texts})


def test_only_folders_with_the_split_are_datasets(tmp_path: Path) -> None:
    write_dataset(tmp_path, "A", [row("q", ["x"])])
    write_dataset(tmp_path, "B", [row("q", ["x"])], split="train")
    (tmp_path / "images").mkdir()
    assert list(find_datasets(tmp_path, "test")) == ["A"]
    with pytest.raises(InputError, match=r"no dataset with a dev-\*\.parquet"):
        find_datasets(tmp_path, "dev")


def test_a_name_on_the_hub_is_downloaded_for_the_split_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, str] = {}

    def snapshot_download(name: str, **options: str) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(datasets, "snapshot_download", snapshot_download)
    assert resolve_datasets("TIGER-Lab/MMEB-eval", "test") == tmp_path
    assert asked == {"name": "TIGER-Lab/MMEB-eval", "repo_type": "dataset", "allow_patterns": "*/test-*.parquet"}
    assert resolve_datasets(str(tmp_path), "test") == tmp_path


def test_a_name_that_the_hub_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, **options: str) -> str:
        raise OSError("offline,\nno cache")

    monkeypatch.setattr(datasets, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"^no/such: .*offline, no cache"):
        resolve_datasets("no/such", "test")


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, "A", [row("q", ["x"])]).rename(tmp_path / "A" / "test-00001-of-00002.parquet")
    with pytest.raises(InputError, match="parts of split test"):
        find_datasets(tmp_path, "test")


def test_a_folder_of_ones_own_needs_no_code(tmp_path: Path) -> None:
    for name in ("mine", "GQA"):
        write_dataset(tmp_path, name, [row("q", ["x"])])
    data, absent = read_data(str(tmp_path), ["all"], benchmark_name="folder")
    assert [rows.name for rows in data.datasets] == ["GQA", "mine"]
    assert (data.benchmark, absent) == (None, [])
    assert read_data(str(tmp_path), ["all"])[0].benchmark is MMEB
    with pytest.raises(InputError, match="mini-MMEB: lists none"):
        read_data(str(tmp_path), ["all"], benchmark_name="mini-MMEB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tgt_text": []}, "row 1: 0 entries in tgt_text but 2"),
        ({"tgt_text": [], "tgt_img_path": []}, "row 1: no candidates"),
        ({"tgt_img_path": ["a.jpg"]}, "row 1: 2 entries in tgt_text but 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_dataset(tmp_path, "A", [row("q", ["x", "y"]), {**row("q", ["x", "y"]), **change}])
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tgt_img_path": "a.jpg"}, "row 0: 2 entries in tgt_text but 1"),
        ({"qry_text": 3}, "column qry_text is int64, not text"),
        ({"tgt_text": [1, 2]}, "column tgt_text is list<element: int64>, not text or lists of text"),
    ],
)
def test_columns_of_another_type_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(write_dataset(tmp_path, "A", [{**row("q", ["x", "y"]), **change}]))


def test_bad_files_are_named(tmp_path: Path) -> None:
    bad = row("q", ["x"])
    del bad["tgt_img_path"]
    path = write_dataset(tmp_path, "A", [bad])
    with pytest.raises(InputError, match="no column tgt_img_path"):
        read(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot read it as parquet"):
        read(path)
    pq.write_table(pa.Table.from_pylist([row("q", ["x"])])[:0], path)
    with pytest.raises(InputError, match="no rows"):
        read(path)


def test_a_git_lfs_pointer_is_distinguished_from_a_damaged_table(tmp_path: Path) -> None:
    path = tmp_path / "test-00000-of-00001.parquet"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 123456\n")
    with pytest.raises(InputError, match=r"parquet: a Git LFS pointer.*`git lfs pull`"):
        read(path)


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        (pa.string_view(), pa.large_list(pa.string())),
        (pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        (pa.binary(), pa.list_(pa.binary())),
        (pa.large_binary(), pa.list_view(pa.string_view())),
        (pa.large_string(), pa.list_(pa.string(), 2)),
    ],
    ids=str,
)
def test_text_of_any_arrow_type_gives_the_same_items(text: pa.DataType, listed: pa.DataType, tmp_path: Path) -> None:
    plain = pa.Table.from_pylist([row("q1", ["a", "b"]), row("q2", ["c", "a"])])
    columns = {}
    for name in plain.column_names:
        kind = listed if name.startswith("tgt") else text
        values = plain.column(name).to_pylist()
        if "binary" in str(kind):
            values = [[each.encode() for each in v] if isinstance(v, list) else v.encode() for v in values]
        columns[name] = pa.array(values, kind)
    path = tmp_path / "D" / "test-00000-of-00001.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table(columns), path)
    (rows,), items = read(path)
    assert [items.text(index) for index in rows.queries] == ["q1", "q2"]
    assert [[items.text(index) for index in rows.of_row(number)] for number in (0, 1)] == [["a", "b"], ["c", "a"]]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"qry_inst": "Find it."}, "column qry_inst holds instructions that are not part of the texts"),
        ({"tgt_inst": ["Represent it."]}, "column tgt_inst holds instructions"),
        ({"neg_text": ["x"]}, "column neg_text holds negatives"),
    ],
)
def test_columns_that_would_be_lost_are_refused(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "D", [{**row("q", ["a", "b"]), **extra}])
    with pytest.raises(InputError, match=rf"test-00000-of-00001\.parquet: {message}"):
        read(path)


def test_other_columns_are_warned_of_and_repeated_ones_refused(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, "D", [{**row("q", ["a", "b"]), "source": "web", "qry_inst": ""}])
    (rows,), _ = read(path)
    assert rows.unused_columns == ("source", "qry_inst")
    assert "D: columns not used: source, qry_inst" in dataset_warnings(rows, np.arange(9, dtype=np.int32), None)
    table = pq.read_table(path)
    pq.write_table(table.append_column("tgt_text", table.column("tgt_text")), path)
    with pytest.raises(InputError, match="column tgt_text occurs 2 times"):
        read(path)
