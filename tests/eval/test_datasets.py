from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval import datasets
from eval.datasets import ItemTable, check_images, find_datasets, read_dataset, resolve_datasets
from tests.eval.conftest import row
from vlm2vec.errors import InputError


def pairs(items: ItemTable, indices) -> list[tuple[str, str]]:
    return [(items.texts[index], items.images[index]) for index in indices]


def test_equal_items_share_an_index_within_and_across_datasets(write_dataset):
    first = write_dataset("A", [row("q", ["x", "y"]), row("q", ["y", "x"])])
    second = write_dataset("B", [row("y", ["q", "z"])])
    items = ItemTable()
    rows_a, rows_b = read_dataset("A", [first], items), read_dataset("B", [second], items)
    assert items.texts == ["q", "x", "y", "z"]
    assert rows_a.queries.tolist() == [0, 0]
    assert [candidates.tolist() for candidates in rows_a.candidates] == [[1, 2], [2, 1]]
    assert rows_b.queries.tolist() == [2]
    assert rows_b.candidates[0].tolist() == [0, 3]
    assert items.first_uses[3] == f"{second} row 0"


def test_the_same_text_with_another_image_is_another_item(write_dataset):
    path = write_dataset("A", [row("", ["t", "t", ""], "a.jpg", ["a.jpg", "", "a.jpg"])])
    items = ItemTable()
    rows = read_dataset("A", [path], items)
    assert pairs(items, rows.queries) == [("", "a.jpg")]
    assert pairs(items, rows.candidates[0]) == [("t", "a.jpg"), ("t", ""), ("", "a.jpg")]


@pytest.mark.parametrize("text", ["", "one text", None])
def test_a_text_that_is_no_list_stands_for_all_images(tmp_path: Path, text):
    path = tmp_path / "test-00000-of-00001.parquet"
    table = {"qry_text": ["q"], "qry_img_path": [""], "tgt_text": pa.array([text], pa.string())}
    pq.write_table(pa.table({**table, "tgt_img_path": [["a.jpg", "b.jpg"]]}), path)
    items = ItemTable()
    rows = read_dataset("A", [path], items)
    assert pairs(items, rows.candidates[0]) == [(text or "", "a.jpg"), (text or "", "b.jpg")]


def test_absent_images_may_be_null_or_an_empty_string(tmp_path: Path):
    path = tmp_path / "test-00000-of-00001.parquet"
    table = {"qry_text": ["q"], "qry_img_path": pa.array([None], pa.string()), "tgt_text": [["x", "y"]]}
    for absent in (pa.array([[None, None]], pa.list_(pa.string())), pa.array([""]), pa.array([None], pa.string())):
        pq.write_table(pa.table({**table, "tgt_img_path": absent}), path)
        items = ItemTable()
        rows = read_dataset("A", [path], items)
        assert pairs(items, rows.candidates[0]) == [("x", ""), ("y", "")]


def test_parts_are_read_in_order_and_rows_count_within_their_file(tmp_path: Path):
    folder = tmp_path / "A"
    folder.mkdir()
    for part, query in enumerate(["first", "second"]):
        pq.write_table(pa.Table.from_pylist([row(query, ["x"])]), folder / f"test-0000{part}-of-00002.parquet")
    found = find_datasets(tmp_path, "test")
    items = ItemTable()
    rows = read_dataset("A", found["A"], items)
    assert pairs(items, rows.queries) == [("first", ""), ("second", "")]
    assert items.first_uses[rows.queries[1]] == f"{found['A'][1]} row 0"


def test_many_rows_are_read_completely(write_dataset):
    path = write_dataset("A", [row(f"q{number}", ["x", "y"]) for number in range(200)])
    assert len(read_dataset("A", [path], ItemTable())) == 200


def test_only_folders_with_the_split_are_datasets(tmp_path: Path, write_dataset):
    write_dataset("A", [row("q", ["x"])])
    write_dataset("B", [row("q", ["x"])], split="train")
    (tmp_path / "data" / "images").mkdir()
    assert list(find_datasets(tmp_path / "data", "test")) == ["A"]
    with pytest.raises(InputError, match=r"no dataset with a dev-\*\.parquet"):
        find_datasets(tmp_path / "data", "dev")


def test_a_name_on_the_hub_is_downloaded_for_the_split_only(tmp_path: Path, monkeypatch, write_dataset):
    write_dataset("A", [row("q", ["x"])])
    asked = {}

    def snapshot_download(name: str, **options: str) -> str:
        asked.update(options, name=name)
        return str(tmp_path / "data")

    monkeypatch.setattr(datasets, "snapshot_download", snapshot_download)
    assert resolve_datasets("TIGER-Lab/MMEB-eval", "test") == tmp_path / "data"
    assert asked == {"name": "TIGER-Lab/MMEB-eval", "repo_type": "dataset", "allow_patterns": "*/test-*.parquet"}
    assert resolve_datasets(str(tmp_path), "test") == tmp_path


def test_a_name_that_the_hub_does_not_have_is_refused(monkeypatch):
    def snapshot_download(name: str, **options: str) -> str:
        raise OSError("offline,\nno cache")

    monkeypatch.setattr(datasets, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"--dataset_name no/such: .*offline, no cache"):
        resolve_datasets("no/such", "test")


def test_a_missing_part_is_refused(tmp_path: Path, write_dataset):
    write_dataset("A", [row("q", ["x"])]).rename(tmp_path / "data" / "A" / "test-00001-of-00002.parquet")
    with pytest.raises(InputError, match="parts of split test"):
        find_datasets(tmp_path / "data", "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tgt_text": []}, "row 0: 0 entries in tgt_text but 2"),
        ({"tgt_text": [], "tgt_img_path": []}, "row 0: no candidates"),
        ({"tgt_img_path": ["a.jpg"]}, "row 0: 2 entries in tgt_text but 1"),
        ({"tgt_img_path": "a.jpg"}, "row 0: 2 entries in tgt_text but 1"),
        ({"qry_text": 3}, "row 0: 3 is not text"),
        ({"tgt_text": [1, 2]}, "row 0: 1 is not text"),
    ],
)
def test_bad_rows_are_named(write_dataset, change, message):
    path = write_dataset("A", [{**row("q", ["x", "y"]), **change}])
    with pytest.raises(InputError, match=message) as caught:
        read_dataset("A", [path], ItemTable())
    assert str(caught.value).startswith(str(path))


def test_bad_files_are_named(write_dataset):
    bad = row("q", ["x"])
    del bad["tgt_img_path"]
    path = write_dataset("A", [bad])
    with pytest.raises(InputError, match="no column tgt_img_path"):
        read_dataset("A", [path], ItemTable())
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot read it as parquet"):
        read_dataset("A", [path], ItemTable())
    pq.write_table(pa.Table.from_pylist([row("q", ["x"])])[:0], path)
    with pytest.raises(InputError, match="no rows"):
        read_dataset("A", [path], ItemTable())


def test_images_are_checked_before_anything_is_loaded(tmp_path: Path, write_dataset, write_image):
    write_image("here.png")
    path = write_dataset("A", [row("q", ["", "", ""], images=["here.png", "gone.png", "lost.png"])])
    items = ItemTable()
    read_dataset("A", [path], items)
    with pytest.raises(InputError, match=r"row 0: no image .*gone\.png \(and 1 more of 3\); check --image_dir"):
        check_images(items, tmp_path / "images")


@pytest.mark.parametrize("image", ["/etc/hostname", "../secret.png", "a/../../secret.png", "nul\0.png", "link.png"])
def test_images_outside_the_folder_are_refused(tmp_path: Path, write_dataset, write_image, image):
    write_image("../secret.png")
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    path = write_dataset("A", [row("q", ["x"], query_image=image)])
    items = ItemTable()
    read_dataset("A", [path], items)
    with pytest.raises(InputError, match="leads out of --image_dir"):
        check_images(items, tmp_path / "images")


def test_links_inside_the_folder_are_followed(tmp_path: Path, write_dataset, write_image):
    write_image("a.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "images" / "a.png")
    path = write_dataset("A", [row("q", ["x"], query_image="link.png")])
    items = ItemTable()
    read_dataset("A", [path], items)
    check_images(items, tmp_path / "images")
