from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from data_prep.conversion import Tolerance, convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.source import SourceData
from tests.rig.convert_program import run_main
from trials.rig.hand_made_train import converted, image_bytes, row, tree, write_rows
from vlm2vec.errors import InputError
from vlm2vec.shards import Item, ShardSet


def test_the_same_input_gives_the_same_bytes_in_any_folder(
    mini_mmeb_dir: Path, mini_shards_dir: Path, tmp_path: Path
) -> None:
    train = mini_mmeb_dir / "MMEB-train"
    moved = tmp_path / "elsewhere"
    moved.symlink_to(train)
    convert(SourceData(moved, moved, ["all"]), tmp_path / "again", replace(DEFAULT_OPTIONS, rows_per_shard=16))
    assert tree(tmp_path / "again") == tree(mini_shards_dir)


def test_all_means_the_splits_folders_and_nothing_legacy(dataset: Path, tmp_path: Path) -> None:
    write_rows(dataset, [row(0)] * 99, "A/train-00000-of-00001.parquet")
    write_rows(dataset, [row(0)] * 99, "A/original-00000-of-00001.parquet.bak")
    write_rows(dataset, [row(0)] * 99, "Legacy/train-00000-of-00001.parquet")
    write_rows(dataset, [row(0)] * 7, "A/diverse_instruction-00000-of-00001.parquet")
    assert {k: v.num_samples for k, v in converted(dataset, tmp_path / "o", subsets=["all"]).subsets.items()} == {
        "A": 10
    }
    other = converted(dataset, tmp_path / "d", subsets=["all"], split_name="diverse_instruction")
    assert other.subsets["A"].num_samples == 7


@pytest.mark.parametrize("name", ["A.b", "we#ird", "sch\u00f6n", "x" * 61, "a b"])
def test_a_subset_whose_name_webdataset_would_misread_is_refused_and_not_left_out(
    name: str, dataset: Path, tmp_path: Path
) -> None:
    write_rows(dataset, [row(0)], f"{name}/original-00000-of-00001.parquet")
    with pytest.raises(InputError, match="not a subset's name"):
        convert(SourceData(dataset, dataset, ["all"]), tmp_path / "o")


def test_any_image_path_and_text_come_through_webdataset(dataset: Path, tmp_path: Path) -> None:
    names = ["a.b.c.png", "sch\u00f6n.png", "sp ace.png", "ha#sh.png", "qu?ery.png", "no_extension", "UPPER.PNG"]
    for shade, name in enumerate(names):
        (dataset / "images/A/Train" / name).write_bytes(image_bytes(shade))
    texts = ["\u202e reversed", "line\u2028separator", "nul \0", "\U0001f600", "</json>", "a.b", "\t"]
    texts = [f"<|image_1|>{text}" for text in texts]
    rows = [row(0, qry=text, qry_image_path=f"images/A/Train/{name}") for text, name in zip(texts, names, strict=True)]
    write_rows(dataset, rows)
    converted(dataset, tmp_path / "o")
    samples = list(webdataset.WebDataset([str(tmp_path / "o/A/A-00000.tar")], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"A/{number:08d}" for number in range(len(names))]
    for shade, sample in enumerate(samples):
        query = json.loads(sample["json"])["query"]
        assert (query["text"], query["image"]["path"]) == (texts[shade], f"images/A/Train/{names[shade]}")
        assert sample["qry.png"] == image_bytes(shade)


def test_shards_are_fixed_row_ranges_over_several_tables(dataset: Path, tmp_path: Path) -> None:
    (dataset / "A/original-00000-of-00001.parquet").unlink()
    write_rows(dataset, [row(number) for number in range(10)], "A/original-00000-of-00002.parquet")
    write_rows(dataset, [row(number) for number in range(10, 17)], "A/original-00001-of-00002.parquet")
    manifest = converted(dataset, tmp_path / "o", rows_per_shard=6)
    assert [shard.rows for shard in manifest.subsets["A"].shards] == [(0, 6), (6, 10), (10, 16), (16, 17)]
    assert [source.rows for source in manifest.subsets["A"].sources] == [10, 7]
    shards = ShardSet.open(tmp_path / "o")
    assert [shards.read("A", position).positive.text for position in range(17)] == [f"answer {n}" for n in range(17)]


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (7, 7), (10, 10), (99, 10)])
def test_the_first_rows_are_kept(limit: int, kept: int, dataset: Path, tmp_path: Path) -> None:
    convert(
        SourceData(dataset, dataset, ["A"]),
        tmp_path / "o",
        replace(DEFAULT_OPTIONS, num_sample_per_subset=limit, rows_per_shard=4),
    )
    shards = ShardSet.open(tmp_path / "o")
    assert shards.columns("A")["row"].tolist() == list(range(kept))


def test_empty_sides_are_skipped_and_counted_by_reason(dataset: Path, tmp_path: Path) -> None:
    rows = [row(number) for number in range(10)]
    rows[2] = row(2, qry="", qry_image_path="")
    rows[3] = row(3, pos_text=" \n")
    rows[4] = row(4, pos_text="")
    rows[5] = row(5, qry="")  # an image alone is a query
    write_rows(dataset, rows)
    subset = converted(dataset, tmp_path / "o", tolerance=Tolerance(max_unusable=0.3), rows_per_shard=4).subsets["A"]
    assert subset.skipped == {"unusable query": 1, "unusable positive": 2}
    assert [shard.num_samples for shard in subset.shards] == [2, 3, 2]
    shards = ShardSet.open(tmp_path / "o")
    assert shards.columns("A")["row"].tolist() == [0, 1, 5, 6, 7, 8, 9]
    assert shards.read("A", 2).query == Item("", (image_bytes(2),))


def test_negatives_are_kept_where_there_are_any(dataset: Path, tmp_path: Path) -> None:
    path = "images/A/Train/1.png"
    rows = [{**row(n), "neg_text": text, "neg_image_path": image} for n, (text, image) in enumerate(NEGATIVES)]
    write_rows(dataset, rows)
    convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o")
    shards = ShardSet.open(tmp_path / "o")
    assert [shards.read("A", n).negatives for n in range(4)] == [
        (Item("wrong"),),
        (Item("<|image_1|> wrong", ((dataset / path).read_bytes(),)),),
        (Item("", ((dataset / path).read_bytes(),)),),
        (),
    ]


NEGATIVES = [("wrong", ""), ("<|image_1|> wrong", "images/A/Train/1.png"), ("", "images/A/Train/1.png"), ("", "")]


def test_nulls_and_a_column_of_nothing_else_are_empty(dataset: Path, tmp_path: Path) -> None:
    rows: dict[str, list[str | None]] = {name: [row(n)[name] for n in range(3)] for name in row(0)}
    rows["pos_image_path"] = [None] * 3
    rows["neg_text"] = [None, "wrong", None]
    pq.write_table(pa.table(rows), dataset / "A/original-00000-of-00001.parquet")
    convert(SourceData(dataset, dataset, ["A"]), tmp_path / "o")
    shards = ShardSet.open(tmp_path / "o")
    assert [shards.read("A", n).negatives for n in range(3)] == [(), (Item("wrong"),), ()]


def test_images_are_named_by_what_they_are_and_repeats_are_counted(dataset: Path, tmp_path: Path) -> None:
    jpeg = image_bytes(50, "JPEG")
    (dataset / "images/A/Train/0.png").write_bytes(jpeg)
    (shard,) = converted(dataset, tmp_path / "o").subsets["A"].shards
    assert b"A/00000000.qry.jpg\0" in (tmp_path / "o/A/A-00000.tar").read_bytes()
    assert shard.unique_images == 3
    assert shard.duplicate_image_bytes == 3 * len(jpeg) + 2 * len(image_bytes(1)) + 2 * len(image_bytes(2))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rewrite(number: int, **changes: str) -> Callable[[Path], None]:
    return lambda root: write_rows(root, [row(n, **changes) if n == number else row(n) for n in range(10)])


def write_numbers(root: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**row(0), "qry": 7}]), root / TABLE)


TABLE = "A/original-00000-of-00001.parquet"
BAD_INPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "column missing": (
        lambda root: write_rows(root, [{k: v for k, v in row(0).items() if k != "pos_text"}]),
        f"{TABLE}: no column pos_text; the columns are qry, ",
    ),
    "column of numbers": (write_numbers, f"{TABLE}: column qry is int64"),
    "table truncated": (lambda root: truncate(root / TABLE), f"{TABLE}: cannot read the table"),
    "table damaged": (lambda root: zero_middle(root / TABLE), f"{TABLE}: cannot read the table"),
    "table absent": (lambda root: (root / TABLE).unlink(), "MMEB-train/A: no original-00000-of-*.parquet"),
    "part absent": (
        lambda root: (root / TABLE).rename(root / "A/original-00001-of-00002.parquet"),
        "MMEB-train/A: not one complete set of original files",
    ),
    "two sets of parts": (
        lambda root: write_rows(root, [row(0)], "A/original-00000-of-00002.parquet"),
        "MMEB-train/A: not one complete set of original files",
    ),
    "subset absent": (lambda root: (root / "A").rename(root / "B"), "no subset A; there are B, images"),
}


def zero_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = BAD_INPUTS[case]
    spoil(dataset)
    for output, existed in ((tmp_path / "new", False), (tmp_path / "empty", True)):
        if existed:
            output.mkdir()
        assert run_main(monkeypatch, dataset, output, "--rows_per_shard", "2") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        beginning, _, end = message.partition("*")
        assert beginning in error
        assert end in error
        assert output.exists() == existed
        assert not existed or list(output.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subset_name", "A", "A"], "A: the subset is given twice"),
        (["--subset_name", "../A"], "../A: not a subset's name"),
        (["--output_dir", "we#ird"], "we#ird: webdataset cannot open tars in a path that contains any of # ? { }"),
        (["--output_dir", "o{0..9}"], "webdataset cannot open"),
        (["--rows_per_shard", "0"], "argument --rows_per_shard: must be at least 1; python -m data_prep.convert --he"),
        (["--num_workers", "two"], "two is not a whole number"),
        (["--check_images", "maybe"], "invalid choice: 'maybe'"),
        (["--no_such_flag"], "unknown option --no_such_flag"),
        (["--subset_name", "all", "--split_name", "nothing"], "no subset has nothing-00000-of-*.parquet"),
        (["--split_name", "orig"], "no orig-00000-of-*.parquet; is the split's name right?"),
        (["--dataset_name", "nowhere"], "nowhere: no such folder; download the dataset first"),
        (["--image_dir", "nowhere"], "nowhere: no such image folder"),
        (["--output_dir", "/dev/null"], "/dev/null: cannot create the folder"),
        (["--output_dir", "/"], "/: not empty, and not a folder of this program; choose a different one"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str],
    message: str,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, dataset, tmp_path / "o", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()
