from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm2vec.errors import InputError
from vlm2vec.shards import ShardSet


def table(path: Path) -> None:
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), path)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda root: None, "root: no such folder; expected the converter's output folder"),
    "file": (lambda root: root.write_text("x"), "root: not a folder; expected"),
    "empty": (lambda root: root.mkdir(), "root: no manifest: an empty folder; the converter fills one"),
    "interrupted": (
        lambda root: [root.mkdir(), (root / "plan.json").write_text("{}")],
        "the conversion is not complete; run its command again (python -m data_prep.convert ... --output_dir",
    ),
    "raw": (
        lambda root: table(root / "A/original-00000-of-00001.parquet"),
        "convert it first: python -m data_prep.convert --dataset_name {root} --subset_name all --output_dir SHARDS",
    ),
    "raw, another split": (
        lambda root: table(root / "A/train-00000-of-00001.parquet"),
        "--subset_name all --split_name train --output_dir SHARDS",
    ),
    "evaluation": (lambda root: table(root / "A/test-00000-of-00001.parquet"), "a dataset for evaluation"),
    "the folder above": (
        lambda root: [(root / "deep").mkdir(parents=True), (root / "deep/manifest.json").write_text("{}")],
        "did you mean {root}/deep?",
    ),
    "a subset": (
        lambda root: [root.mkdir(), (root / "A-00000.tar").touch(), (root.parent / "manifest.json").write_text("{}")],
        "did you mean {root.parent}?",
    ),
    "anything": (lambda root: [root.mkdir(), (root / "x").touch()], "no manifest: not the converter's output folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_folder_is_instead_and_what_to_do(case: str, tmp_path: Path) -> None:
    make, message = CASES[case]
    root = tmp_path / "root"
    make(root)
    with pytest.raises(InputError) as caught:
        ShardSet.open(root)
    assert message.format(root=root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_on_the_hub_gets_the_converters_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"convert it first: .* --dataset_name TIGER-Lab/MMEB-train --subset_name all"):
        ShardSet.open("TIGER-Lab/MMEB-train")


def test_a_conversion_without_its_manifest_is_called_interrupted(mini_shards_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(mini_shards_dir, tmp_path / "o")
    (tmp_path / "o/manifest.json").unlink()
    with pytest.raises(InputError, match="the conversion is not complete"):
        ShardSet.open(tmp_path / "o")


def test_a_table_of_ones_own_gets_the_converters_command(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"a table; convert it first: .* --dataset_name \S+/pairs\.jsonl --output_dir"):
        ShardSet.open(tmp_path / "pairs.jsonl")
