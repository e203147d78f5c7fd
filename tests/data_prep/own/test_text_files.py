from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.own import text_files
from data_prep.own.text_files import scan
from data_prep.rows import RowError
from vlm2vec.errors import InputError

TEXTS = ['say "hi", twice', "two\nlines", "", "ü 漢字", "tab\tand\r\nreturn", " blank "]


def all_rows(path: Path) -> list[tuple[int, int, Any]]:
    file = scan(path)
    return [as_plain(*row) for row in file.rows(0, file.num_rows)]


def as_plain(number: int, line: int, content: dict[str, Any] | RowError) -> tuple[int, int, Any]:
    return number, line, str(content) if isinstance(content, RowError) else content


def write_csv(path: Path, rows: list[list[str]], **options: Any) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([["a", "b"], *rows])
    return path


def test_rows_of_jsonl_are_numbered_without_empty_lines_and_know_their_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "1"}\r\n\n  \n{"b": [2]}\n{"c": {"d": null}}')
    assert all_rows(path) == [(0, 1, {"a": "1"}), (1, 4, {"b": [2]}), (2, 5, {"c": {"d": None}})]
    assert scan(path).columns == ("a", "b", "c")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_fields_of_csv_may_hold_anything(suffix: str, tmp_path: Path) -> None:
    rows = [[text, str(number)] for number, text in enumerate(TEXTS)]
    path = write_csv(tmp_path / f"x{suffix}", rows, delimiter="\t" if suffix == ".tsv" else ",")
    found = all_rows(path)
    assert [[content["a"], content["b"]] for _, _, content in found] == rows
    # The line at which a row begins, of a file in which some rows have two.
    assert [line for _, line, _ in found] == [2, 3, 5, 6, 7, 9]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Excel writes it
    assert all_rows(path) == found


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_every_range_of_rows_is_the_same_as_in_the_whole(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MARK_ROWS", 4)
    path = tmp_path / f"x{suffix}"
    rows = [[f"{TEXTS[number % len(TEXTS)]} {number}", "b"] for number in range(23)]
    if suffix == ".csv":
        write_csv(path, rows)
        path.write_bytes(path.read_bytes() + b'"broken"here,1\n\nlast,2\n')
    else:
        lines = [json.dumps({"a": a, "b": b}) + "\n\n" for a, b in rows]
        path.write_text("".join([*lines[:9], "broken\n", *lines[9:], '{"a": "last"}']))
    file, whole = scan(path), all_rows(path)
    assert file.num_rows == len(whole) == 25
    assert sum(isinstance(content, str) for _, _, content in whole) == 1
    for start in range(25):
        for end in (start, start + 1, start + 5, 25):
            assert [as_plain(*row) for row in file.rows(start, end)] == whole[start:end]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{bad}", "not JSON (Expecting property name enclosed in double quotes, column 2)"),
        (b'{"a": 1', "not JSON (Expecting ',' delimiter, column 8)"),
        (b'["a"]', "not a JSON object but ['a']"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "not JSON (maximum recursion depth"),
        (b"9" * 5_000, "not JSON (Exceeds the limit"),
    ],
    ids=["bad", "cut off", "a list", "latin 1", "deep", "a long number"],
)
def test_a_bad_line_of_jsonl_is_a_bad_row(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "1"}\n' + line + b'\n{"a": "3"}\n')
    first, bad, last = all_rows(path)
    assert (first[2], last) == ({"a": "1"}, (2, 3, {"a": "3"}))
    assert bad[:2] == (1, 2)
    assert bad[2].startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1,2,3", "3 fields, the first line names 2"),
        (b"1", "1 field, the first line names 2"),
        (b'"1"2,3', "not CSV ('"),
    ],
)
def test_a_bad_line_of_csv_is_a_bad_row(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'a,b\n"1\n2",3\n' + line + b"\n4,5\n")
    first, bad, last = all_rows(path)
    assert (first[2], last) == ({"a": "1\n2", "b": "3"}, (2, 5, {"a": "4", "b": "5"}))
    assert bad[:2] == (1, 4)
    assert bad[2].startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "x.jsonl: no rows"),
        ("x.jsonl", b"\n\n", "x.jsonl: no rows"),
        ("x.json", b'\n [{"a": 1}]', "x.json: a JSON array; write one object per line (jq -c '.[]' x.json"),
        ("x.jsonl", '{"a": 1}'.encode("utf-16"), "x.jsonl: UTF-16; save it as UTF-8"),
        ("x.csv", b"", "x.csv: empty; the first line must name the columns"),
        ("x.csv", b"a,b\n", "x.csv: no rows"),
        ("x.csv", b"a;b\n1;2\n", "x.csv: the first line is 'a;b', without a ','; are its fields separated by ';'?"),
        ("x.csv", b"a,,b\n1,2,3\n", "x.csv: column 2 has no name in the first line"),
        ("x.csv", b'a,b\n1,2\n"3,4\n5,6\n', "x.csv, line 3: a quote that begins in this row is never closed"),
    ],
)
def test_a_file_that_is_none_of_these_is_refused_as_a_whole(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        scan(tmp_path / name)
    assert message in str(error.value)


def test_a_line_or_a_field_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(text_files, "MAX_FIELD_CHARACTERS", 100)
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": "' + "x" * 100 + '"}')
    with pytest.raises(InputError, match=r"x\.jsonl, line 2: longer than"):
        scan(tmp_path / "x.jsonl")
    (tmp_path / "x.csv").write_text('a,b\n"' + "x,\n" * 100 + '",\n')
    with pytest.raises(InputError, match=r"x\.csv, line 2: a quote that begins in this row is never closed"):
        scan(tmp_path / "x.csv")


def test_a_file_that_changes_after_the_scan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n')
    file = scan(path)
    path.write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(InputError, match="changed while it was read"):
        list(file.rows(0, 1))
