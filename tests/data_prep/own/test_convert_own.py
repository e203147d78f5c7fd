from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import convert as program
from data_prep import images, inspect
from data_prep.statistics import SubsetStatistics
from data_prep.verify import verify
from trials.rig.hand_made_train import image_bytes, make_dataset, tree
from vlm2vec.errors import run_program
from vlm2vec.shards import ShardSet
from vlm2vec.shards.manifest import Manifest
from vlm2vec.shards.schema import Item, Sample

ROWS = 20


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of texts, a path to one of three images, and a negative in every second."""
    negative = f"not {number}" if number % 2 else None
    plain = {"query": f"find {number}", "positive_image": f"img/{number % 3}.png", "negative": negative}
    return {**plain, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images."""
    (tmp_path / "data/img").mkdir(parents=True)
    for shade in range(3):
        (tmp_path / f"data/img/{shade}.png").write_bytes(image_bytes(shade))
    return tmp_path / "data"


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the program: its exit code, and what it wrote to both streams."""

    def call(names: Path | str | list[Path], output: Path, *options: object) -> tuple[int, str]:
        given = names if isinstance(names, list) else [names]
        words = ["--dataset_name", *given, "--output_dir", output, "--num_workers", 0, "--rows_per_shard", 6, *options]
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
        code = run_program(program.main)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return call


def samples(output: Path, name: str) -> list[Sample]:
    shards = ShardSet.open(output)
    return [shards.read(name, position) for position in range(shards.num_samples[name])]


def inspected(shards: Path) -> list[SubsetStatistics]:
    return inspect.collect(ShardSet.open(shards), Manifest.read(shards), 2, None)


def test_every_format_gives_the_same_pairs(folder: Path, tmp_path: Path, run: Any) -> None:
    rows = [row(number) for number in range(ROWS)]
    write_jsonl(folder / "pairs.jsonl", rows)
    write_csv(folder / "pairs.csv", rows)
    write_parquet(folder / "pairs.parquet", rows)
    embedded = [{**each, "positive_image": {"bytes": image_bytes(n % 3), "path": None}} for n, each in enumerate(rows)]
    write_parquet(folder / "embedded.parquet", embedded)
    mmeb = {"query": "qry", "positive_image": "pos_image_path", "negative": "neg_text"}
    write_jsonl(folder / "mmeb.jsonl", [{mmeb[name]: value for name, value in each.items()} for each in rows])
    plain = None
    for name in ("pairs.jsonl", "pairs.csv", "pairs.parquet", "embedded.parquet", "mmeb.jsonl"):
        assert run(folder / name, tmp_path / name, "--subset_name", "A")[0] == 0
        found = samples(tmp_path / name, "A")
        plain = plain or found
        assert found == plain
        assert verify(tmp_path / name, decode=True).problems == ()
    assert plain is not None
    assert len(plain) == ROWS
    assert [plain[n].positive.image for n in range(3)] == [image_bytes(shade) for shade in range(3)]
    assert [plain[n].query.text for n in range(2)] == ["find 0", "find 1"]
    assert (plain[0].positive.text, plain[0].negatives) == ("", ())
    assert [each.text for each in plain[1].negatives] == ["not 1"]
    (shown,) = inspected(tmp_path / "pairs.jsonl")
    assert (shown.name, shown.rows) == ("A", ROWS)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_lists_are_several_negatives_and_several_images(name: str, folder: Path, tmp_path: Path, run: Any) -> None:
    lists = {"negative": ["one", "two"], "negative_image": ["img/1.png", None]}
    rows = [{"query": "same?", "query_image": ["img/0.png", "img/1.png"], "positive": "no", **lists}, row(1)]
    rows[1] |= {"query_image": [], "positive": None, "negative": [], "negative_image": []}
    write = write_jsonl if name.endswith("jsonl") else write_parquet
    fields = dict.fromkeys(field for each in rows for field in each)
    path = write(folder / name, [{field: each.get(field) for field in fields} for each in rows])
    assert run(path, tmp_path / "o")[0] == 0
    first, second = samples(tmp_path / "o", "pairs")
    assert first.query == Item("<|image_1|> <|image_2|> same?", (image_bytes(0), image_bytes(1)))
    assert first.negatives == (Item("<|image_1|> one", (image_bytes(1),)), Item("two"))
    assert (second.query, second.negatives) == (Item("find 1"), ())
    assert verify(tmp_path / "o", decode=True).problems == ()
    assert inspected(tmp_path / "o")[0].rows == 2


def test_workers_and_a_second_run_change_nothing(folder: Path, tmp_path: Path, run: Any) -> None:
    path = write_jsonl(folder / "pairs.jsonl", [row(number) for number in range(ROWS)])
    assert run(path, tmp_path / "a")[0] == run(path, tmp_path / "b", "--num_workers", 2)[0] == 0
    before = tree(tmp_path / "a")
    assert tree(tmp_path / "b") == before
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "a/pairs").iterdir()}
    (tmp_path / "a/pairs/pairs-00001.json").unlink()
    (tmp_path / "a/manifest.json").unlink()
    assert run(path, tmp_path / "a")[0] == 0
    assert tree(tmp_path / "a") == before
    changed = {file.stem for file, time in times.items() if file.stat().st_mtime_ns != time}
    assert changed == {"pairs-00001"}


def test_a_changed_image_is_read_again_and_a_changed_file_or_option_refused(
    folder: Path, tmp_path: Path, run: Any
) -> None:
    path = write_jsonl(folder / "pairs.jsonl", [row(number) for number in range(ROWS)])
    assert run(path, tmp_path / "o")[0] == 0
    (folder / "img/0.png").write_bytes(image_bytes(99))
    assert run(path, tmp_path / "o")[0] == 0
    assert samples(tmp_path / "o", "pairs")[0].positive.image == image_bytes(99)
    code, shown = run(path, tmp_path / "o", "--instruction", "Find:")
    assert (code, "was started with --instruction None (now Find:); use" in shown) == (2, True)
    code, shown = run(path, tmp_path / "o", "--columns", "query=query", "positive_image=positive_image")
    assert "--columns None (now query=query positive_image=positive_image); use" in shown
    write_jsonl(path, [row(number) for number in range(ROWS + 1)])
    code, shown = run(path, tmp_path / "o")
    assert (code, "was started with a different pairs.jsonl" in shown) == (2, True)


def test_bad_rows_are_left_out_counted_and_named_by_their_line(folder: Path, tmp_path: Path, run: Any) -> None:
    rows = [json.dumps(row(number)) for number in range(ROWS)]
    rows[3:3] = ["", "not JSON"]
    rows[7:7] = [json.dumps(row(7, query=7)), json.dumps(row(7, query=""))]
    rows += [json.dumps(row(1, positive_image=f"{name}.png")) for name in ("none", "../img/0", "/img/0")]
    (folder / "broken.png").write_bytes(b"no image")
    rows += [json.dumps(row(1, positive_image="broken.png")), json.dumps(row(1, positive="<|image_2|> x"))]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    code, shown = run(folder / "pairs.jsonl", tmp_path / "o")
    assert code == 3
    assert "not complete: 4 missing or unreadable images, more than --max_missing 0" in shown
    assert "4 of 28 rows of pairs unusable, more than --max_unusable 0.05" in shown
    for line in (
        "  pairs.jsonl, line 5 (row): not JSON (Expecting value, column 1)\n",
        "  pairs.jsonl, line 8 (row): query is a number (7), not a text\n",
        "  pairs.jsonl, line 9 (query): empty: neither text nor image\n",
        "  pairs.jsonl, line 29 (positive): an item with 1 image has <|image_2|> in its text",
        "  pairs.jsonl, line 25: none.png\n",
        "  pairs.jsonl, line 26: unsafe image path: ../img/0.png: an image's path must be relative",
        "  pairs.jsonl, line 27: unsafe image path: /img/0.png: an image's path must be relative",
        "  pairs.jsonl, line 28: unreadable image: broken.png: ",
        "pairs: 2 rows left out: unusable row\n",
    ):
        assert line in shown
    for _ in range(2):  # written now; taken from the sidecars
        assert run(folder / "pairs.jsonl", tmp_path / "o", "--max_missing", 4, "--max_unusable", 0.5)[0] == 0
        report = json.loads((tmp_path / "o/report.json").read_text())["total"]
        assert (report["rows"], report["samples"], report["unusable_rows"]) == (28, ROWS, 4)
        assert report["first_missing"] == ["pairs.jsonl, line 25: none.png"]
        assert report["first_unusable"][0].startswith("pairs.jsonl, line 5 (row): not JSON")
    assert verify(tmp_path / "o").problems == ()


def test_limits_hold_for_embedded_images(
    folder: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    rows = [row(n, positive_image={"bytes": data}) for n, data in enumerate((header, image_bytes(0) + bytes(2000)))]
    path = write_parquet(folder / "pairs.parquet", [*rows, row(2, positive_image={"bytes": image_bytes(2)})])
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 2000)
    code, shown = run(path, tmp_path / "o", "--check_images", "none")
    assert code == 3
    assert "row 0, positive_image: 20000 x 20000 is more than 89478485 pixels" in shown
    assert f"row 1, positive_image: {len(image_bytes(0)) + 2000} bytes are too many for an image" in shown


def test_embedded_images_are_counted_one_by_one_and_stored_untouched(folder: Path, tmp_path: Path, run: Any) -> None:
    with_metadata = image_bytes(5) + b"trailing bytes"
    data = [with_metadata, b"broken", b"broken too"]
    rows = [row(n, positive_image={"bytes": each, "path": "same.png"}) for n, each in enumerate(data)]
    path = write_parquet(folder / "pairs.parquet", rows)
    code, shown = run(path, tmp_path / "o", "--max_missing", 2)
    assert code == 0
    assert "pairs.parquet, row 1: unreadable image: pairs.parquet, row 1, positive_image (same.png): " in shown
    (sample,) = samples(tmp_path / "o", "pairs")
    assert sample.positive.image == with_metadata


def test_several_files_are_several_subsets(folder: Path, tmp_path: Path, run: Any) -> None:
    first = write_jsonl(folder / "my pairs (v2).jsonl", [row(0), row(1)])
    second = write_csv(folder / "other.csv", [row(2)])
    assert run([first, second], tmp_path / "o")[0] == 0
    assert ShardSet.open(tmp_path / "o").num_samples == {"my_pairs_v2": 2, "other": 1}
    assert run([first, second], tmp_path / "p", "--subset", "B", "A")[0] == 0
    assert ShardSet.open(tmp_path / "p").num_samples == {"B": 2, "A": 1}
    (folder / "again").mkdir()
    third = write_csv(folder / "again/other.csv", [row(2)])
    code, shown = run([second, third], tmp_path / "q")
    assert (code, "would both be subset other; give each a name with --subset_name" in shown) == (2, True)
    code, shown = run([first, second], tmp_path / "q", "--subset", "B")
    assert "--subset_name B: 1 name for 2 files or folders in --dataset_name; give one for each" in shown
    code, shown = run(first, tmp_path / "q", "--subset", "all")
    assert "'all' cannot be a subset's name" in shown


def test_columns_instruction_and_image_folder(folder: Path, tmp_path: Path, run: Any) -> None:
    rows = [{"question": f"what {n}?", "photo": f"{n}.png", "answer": f"a {n}", "id": n} for n in range(3)]
    (tmp_path / "elsewhere").mkdir()
    path = write_jsonl(tmp_path / "elsewhere/vqa.jsonl", rows)
    flags = ["--columns", "query=question", "query_image=photo", "positive=answer", "--image_dir", folder / "img"]
    code, shown = run(path, tmp_path / "o", *flags, "--instruction", "Answer the question:")
    assert (code, "vqa: columns not used: id\n" in shown) == (0, True)
    found = samples(tmp_path / "o", "vqa")
    assert [each.query.text for each in found] == [f"<|image_1|> Answer the question: what {n}?" for n in range(3)]
    assert [each.query.image for each in found] == [image_bytes(shade) for shade in range(3)]
    assert [each.positive.text for each in found] == ["a 0", "a 1", "a 2"]
    options = json.loads((tmp_path / "o/manifest.json").read_text())["options"]
    assert options["columns"] == {"query": "question", "query_image": "photo", "positive": "answer"}
    assert options["instruction"] == "Answer the question:"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none.jsonl", [], "none.jsonl: no such file"),
        ("pairs.txt", [], "pairs.txt: a table's name must end with .jsonl, .json, .csv, .tsv, .parquet"),
        ("pairs.jsonl", ["--split_name", "train"], "--split_name train: "),
        ("pairs.jsonl", ["--config_name", "a"], "--config_name a: "),
        ("pairs.jsonl", ["--columns", "a=b"], "--columns a=b: 'a' is none of query"),
        ("pairs.jsonl", ["--columns", "query=a", "positive=b"], "pairs.jsonl: no column a; it has query, "),
        ("pairs.jsonl", ["--image_dir", "/nowhere"], "/nowhere: no such image folder"),
        ("lost.jsonl", [], "lost.jsonl: none of its first images below "),
        ("mmeb", [], "mmeb: add --subset_name (names, or all) for MMEB-train, or --columns for your own data"),
        ("mmeb", ["--subset_name", "A", "--instruction", "x"], "--instruction x: "),
        (
            "owner/name",
            ["pairs.jsonl", "--subset", "A", "B"],
            "owner/name: a dataset on the hub must be converted by itself",
        ),
        ("owner/name", [], "owner/name: add --subset_name (names, or all) for MMEB-train, or --columns"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    name: str, options: list[str], message: str, folder: Path, tmp_path: Path, run: Any
) -> None:
    write_jsonl(folder / "pairs.jsonl", [row(0)])
    write_jsonl(folder / "pairs.txt", [row(0)])
    write_jsonl(folder / "lost.jsonl", [row(0, positive_image="lost.png")])
    make_dataset(folder / "mmeb")
    names: list[Path | str] = [name if "/" in name else folder / name]
    if options and not options[0].startswith("--"):
        names.append(folder / options[0])
        options = options[1:]
    code, shown = run(names, tmp_path / "o", *options)
    assert (code, shown.count("\n")) == (2, 1)
    assert message in shown


def test_a_data_set_of_the_hub_is_downloaded_whole(
    folder: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's folder holds links to where it keeps the files; images among them are followed."""
    (tmp_path / "snapshot").mkdir()
    write_jsonl(folder / "blob", [row(number) for number in range(3)])
    (tmp_path / "snapshot/train.jsonl").symlink_to(folder / "blob")
    (tmp_path / "snapshot/img").mkdir()
    for shade in range(3):
        (tmp_path / f"snapshot/img/{shade}.png").symlink_to(folder / f"img/{shade}.png")

    def snapshot_download(name: str, allow_patterns: list[str], **_: Any) -> str:
        assert name == "owner/name"
        assert {"README.md", "*.jsonl", "*.png"} <= set(allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    columns = ["--columns", "query=query", "positive_image=positive_image", "--subset_name", "mine"]
    assert run("owner/name", tmp_path / "o", *columns)[0] == 0
    assert samples(tmp_path / "o", "mine")[2].positive.image == image_bytes(2)
