from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.own import arrow_files
from data_prep.own.arrow_files import open_arrow
from trials.rig.hand_made_train import image_bytes
from vlm2vec.errors import InputError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(rows: int = 10, **columns: Any) -> pa.Table:
    plain = {"query": [f"q {number}" for number in range(rows)], "positive": ["p"] * rows}
    return pa.table({**plain, **columns})


def write(path: Path, content: pa.Table, batch_rows: int = 4) -> Path:
    """A parquet file, or a stream of Arrow as `save_to_disk` writes it."""
    if path.suffix == ".parquet":
        pq.write_table(content, path, row_group_size=batch_rows)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content, max_chunksize=batch_rows)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_every_range_of_rows_is_the_same_as_in_the_whole(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_files, "_BATCH_ROWS", 3)
    images = [{"bytes": image_bytes(shade), "path": f"{shade}.png"} for shade in range(10)]
    path = write(tmp_path / f"x{suffix}", table(query_image=pa.array(images, STRUCT), other=["x"] * 10))
    file = open_arrow(path, None)
    assert (file.num_rows, file.columns) == (10, ("query", "positive", "query_image", "other"))
    whole = list(file.rows(0, 10))
    assert whole == [(row, {"query": f"q {row}", "query_image": images[row], "positive": "p"}) for row in range(10)]
    for start in range(10):
        for end in range(start, 11):
            assert list(file.rows(start, end)) == whole[start:end]


@pytest.mark.parametrize(
    ("column", "values", "wanted"),
    [
        ("query", pa.array(range(10)), "column query is int64, not text"),
        ("query", pa.array([{"a": 1}] * 10), "column query is struct<a: int64>, not text"),
        ("positive_image", pa.array(range(10)), "column positive_image is int64, not images (paths"),
        ("positive_image", pa.array([{"url": "x"}] * 10), "column positive_image is struct<url: string>, not images"),
        ("negative_image", pa.array([[[1]]] * 10), "column negative_image is list<element: list<element: int64>>"),
    ],
)
def test_columns_of_another_type_are_refused(column: str, values: pa.Array, wanted: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", table(**{column: values}))
    with pytest.raises(InputError) as error:
        open_arrow(path, None)
    assert str(error.value).startswith(f"{path}: ")
    assert wanted in str(error.value)


def test_classes_of_a_hugging_face_data_set_are_texts(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"query": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    Dataset.from_dict({"query": ["a", "b", "c"], "label": [1, 0, None]}, features).to_parquet(tmp_path / "x.parquet")
    file = open_arrow(tmp_path / "x.parquet", {"query": "query", "positive": "label"})
    assert [values["label"] for _, values in file.rows(0, 3)] == ["dog", "cat", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no table", "cannot read the table (Parquet magic bytes not found"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
    ],
)
def test_what_is_no_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(InputError) as error:
        open_arrow(tmp_path / "x.parquet", None)
    assert message in str(error.value)


def test_a_table_without_rows_and_one_that_changes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", table(0))
    with pytest.raises(InputError, match="no rows"):
        open_arrow(path, None)
    file = open_arrow(write(path, table()), None)
    write(path, table(11))
    with pytest.raises(InputError, match="changed while it was read"):
        list(file.rows(0, 1))
