from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value

from data_prep.conversion import convert
from data_prep.own.folders import split_files
from data_prep.own.source import OwnData, own_subsets
from trials.rig.hand_made_train import image_bytes
from vlm2vec.errors import InputError
from vlm2vec.shards import ShardSet


def data_set(first: int = 0) -> Dataset:
    """Three captions with images."""
    images = [{"bytes": image_bytes(first + shade), "path": None} for shade in range(3)]
    captions = [f"caption {first + number}" for number in range(3)]
    features = Features({"caption": Value("string"), "photo": Image()})
    return Dataset.from_dict({"caption": captions, "photo": images}, features)


def check(folder: Path, output: Path, split: str | None = None, config: str | None = None, first: int = 0) -> None:
    """Converts the folder and compares texts and images."""
    subsets = own_subsets([folder], ["A"], split, config)
    columns = {"query": "caption", "positive_image": "photo"}
    assert convert(OwnData(subsets, columns), output).manifest is not None
    shards = ShardSet.open(output)
    samples = [shards.read("A", row) for row in range(3)]
    assert [sample.query.text for sample in samples] == [f"caption {first + row}" for row in range(3)]
    assert [sample.positive.image for sample in samples] == [image_bytes(first + row) for row in range(3)]


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    data_set().save_to_disk(str(tmp_path / "one"))
    check(tmp_path / "one", tmp_path / "out")
    DatasetDict({"train": data_set(), "test": data_set(10)}).save_to_disk(str(tmp_path / "two"))
    check(tmp_path / "two", tmp_path / "out_train")
    check(tmp_path / "two", tmp_path / "out_test", "test", first=10)
    with pytest.raises(InputError, match=r"two: no split dev; it has train, test"):
        split_files(tmp_path / "two", "dev", None)
    with pytest.raises(InputError, match=r"one: a dataset without splits; leave out --split_name"):
        split_files(tmp_path / "one", "train", None)
    with pytest.raises(InputError, match=r"one: saved by save_to_disk, it has no configurations"):
        split_files(tmp_path / "one", None, "default")


def test_a_saved_data_set_cannot_name_files_outside_of_its_folder(tmp_path: Path) -> None:
    data_set().save_to_disk(str(tmp_path / "one"))
    (tmp_path / "one/data-00000-of-00001.arrow").rename(tmp_path / "x.arrow")
    state = json.loads((tmp_path / "one/state.json").read_text())
    state["_data_files"] = [{"filename": "../x.arrow"}]
    (tmp_path / "one/state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"x\.arrow, which is outside the folder"):
        split_files(tmp_path / "one", None, None)


def test_folders_of_parquet_files_as_the_hub_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    data_set().select([0, 1]).to_parquet(folder / "data/train-00000-of-00002.parquet")
    data_set().select([2]).to_parquet(folder / "data/train-00001-of-00002.parquet")
    data_set(10).to_parquet(folder / "data/test-00000-of-00001.parquet")
    check(folder, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    check(Path("repository"), tmp_path / "out_test", "test", first=10)
    assert ShardSet.open(tmp_path / "out_test").read("A", 2).row == 2


def test_configurations_of_a_read_me(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 10)):
        (tmp_path / "x" / name).mkdir(parents=True)
        data_set(first).to_parquet(tmp_path / "x" / name / "part.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in "ab")
    (tmp_path / "x/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    check(tmp_path / "x", tmp_path / "out", None, "b", first=10)
    with pytest.raises(InputError, match=r"x: not a dataset that `datasets` can load \(Config name is missing"):
        split_files(tmp_path / "x", None, None)


def test_an_image_folder_with_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    with open(folder / "metadata.jsonl", "w") as file:
        for number in range(3):
            (folder / f"{number}.png").write_bytes(image_bytes(number))
            file.write(json.dumps({"file_name": f"{number}.png", "text": f"t {number}"}) + "\n")
    subsets = own_subsets([folder], None, None, None)
    assert list(subsets) == ["x"]
    convert(OwnData(subsets, {"query": "text", "positive_image": "file_name"}), tmp_path / "out")
    assert ShardSet.open(tmp_path / "out").read("x", 1).positive.image == image_bytes(1)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match=r"x: split train has no \.jsonl, .* files, only \.png"):
        split_files(folder, None, None)


@pytest.mark.parametrize("name", ["empty", "script"])
def test_folders_without_data_and_with_a_script_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    if name == "script":
        (tmp_path / name / "script.py").write_text("raise SystemExit('must not run')\n")
    with pytest.raises(InputError, match=rf"{name}: not a dataset that `datasets` can load"):
        split_files(tmp_path / name, None, None)
