"""The sidecar of mining: written files are read back, and damaged ones refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm2vec.errors import InputError
from vlm2vec.mined.format import MINING_PLAN_NAME, Lists, Mined, MinedSubset, Teacher, write_subset
from vlm2vec.shards.manifest import fingerprint_of

SHARDS = "ab" * 32


def lists(*rows: list[int]) -> Lists:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Lists(np.array([value for row in rows for value in row], dtype=np.int32), offsets)


def subset() -> MinedSubset:
    return MinedSubset(
        positive_score=np.array([0.9, 0.5, -0.2, 1.0, 0.1], dtype=np.float32),
        negatives=lists([2, 1], [], [0], [4, 0], []),
        negative_scores=np.array([0.8, 0.8, 0.3, 0.5, -0.5], dtype=np.float32),
        false_negatives=lists([3, 4], [0], [], [], [0, 2]),
        cluster=np.array([1, 0, 0, -1, 1], dtype=np.int32),
    )


def write(root: Path, mined: MinedSubset) -> Mined:
    records = {"Cats": write_subset(root, "Cats", mined, {"skip_ranks": 3}, {"without": 2})}
    folder = Mined(root, SHARDS, Teacher("teacher", "12ab"), 2, records)
    folder.write()
    return folder


def test_what_is_written_is_read_and_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written = write(tmp_path / name, subset())
    for file in ("Cats.parquet", "mined.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    read = Mined.open(tmp_path / "b", SHARDS, {"Cats": 5})
    assert read == written
    assert read.subsets["Cats"].num_clusters == 2
    expected, found = subset(), read.subset("Cats")
    for one, other in ((found.negatives, expected.negatives), (found.false_negatives, expected.false_negatives)):
        assert [one[row].tolist() for row in range(5)] == [other[row].tolist() for row in range(5)]
    for name in ("positive_score", "negative_scores", "cluster"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_score": np.array([0.9, np.nan, 0, 0, 0], dtype=np.float32)}, "row 1: positive_score is not a"),
        ({"positive_score": np.array([0.9, 0, 0, 1.2, 0], dtype=np.float32)}, "row 3: positive_score is not a cosine"),
        ({"negatives": lists([2, 5], [], [0], [4, 0], [])}, "row 0: negatives has a position that is none of 5"),
        ({"negatives": lists([2, 1], [], [2], [4, 0], [])}, "row 2: negatives names the row itself"),
        ({"negatives": lists([2, 2], [], [0], [4, 0], [])}, "row 0: negatives names a position twice"),
        ({"negatives": lists([2, 3], [], [0], [4, 0], [])}, "row 0: a position is a hard negative and a false"),
        (
            {"negative_scores": np.array([0.8, 0.7, 0.3, 0.5, 0.6], dtype=np.float32)},
            "row 3: negatives are not ordered",
        ),
        ({"negative_scores": np.array([0.8, np.inf, 0.3, 0.5, 0.4], dtype=np.float32)}, "row 0: negative_scores has"),
        ({"false_negatives": lists([4, 3], [0], [], [], [0, 2])}, "row 0: false_negatives are not ascending"),
        ({"false_negatives": lists([3, 4], [-1], [], [], [])}, "row 1: false_negatives has a position that is none"),
        ({"cluster": np.array([1, 0, 0, 0, 1], dtype=np.int32)}, "row 1: its cluster does not have 2 rows"),
        ({"cluster": np.array([1, -2, -1, -1, 1], dtype=np.int32)}, "row 1: cluster is none of 2"),
        ({"cluster": np.array([1, -1, -1, -1, 1], dtype=np.int32)}, "negatives or clusters differs from mined.json"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, dataclasses.replace(subset(), **changes))
    with pytest.raises(InputError, match=message):
        Mined.read(tmp_path).subset("Cats")


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Changes `mined.json`, with a fingerprint that fits."""

    def damage(root: Path) -> None:
        content = json.loads((root / "mined.json").read_text())
        change(content)
        del content["fingerprint"]
        (root / "mined.json").write_text(json.dumps({"fingerprint": fingerprint_of(content), **content}))

    return damage


def replace_text(root: Path) -> None:
    path = root / "mined.json"
    path.write_text(path.read_text().replace('"teacher"', '"another"', 1).replace('"another"', '"teacher"', 1) + " ")
    path.write_text(path.read_text().replace("12ab", "12ac"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "mined.json").unlink(), "no mined.json; expected the output folder of python -m data_"),
        (
            lambda root: ((root / "mined.json").unlink(), (root / MINING_PLAN_NAME).touch()),
            "mining is not complete; run its command again",
        ),
        (replace_text, "the content does not match the fingerprint"),
        (edit(lambda content: content.update(schema_version=2)), "schema version 2, this code reads 1"),
        (edit(lambda content: content.update(shards="cd" * 32)), "mined from different shards"),
        (edit(lambda content: content.update(more=1)), "more is not a setting that this version knows"),
        (edit(lambda content: content["subsets"].update(Dogs=content["subsets"].pop("Cats"))), "is not the file of a"),
        (edit(lambda content: content["subsets"]["Cats"].update(file="../x.parquet")), "is not the file of a subset"),
        (
            edit(lambda content: content["subsets"]["Cats"].update(num_samples=6)),
            "6 samples of Cats, the shards have 5",
        ),
        (edit(lambda content: content["subsets"].clear()), "subset Cats was not mined"),
        (lambda root: (root / "mined.json").write_text("[]"), "schema version None"),
        (lambda root: (root / "mined.json").write_text("{"), "cannot be read as JSON"),
        (lambda root: (root / "Cats.parquet").unlink(), "cannot read what was mined"),
        (lambda root: (root / "Cats.parquet").write_bytes(b"PAR1"), "not the file that mined.json names"),
    ],
)
def test_damaged_and_other_folders_are_refused(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    write(tmp_path, subset())
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        Mined.open(tmp_path, SHARDS, {"Cats": 5}).subset("Cats")
    assert "\n" not in str(caught.value)
