from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep import verify as program
from data_prep.verify import verify
from tests.data_prep.test_report import write_half_a_photograph
from trials.rig.hand_made_train import converted, make_dataset
from vlm2vec.errors import InputError, run_program
from vlm2vec.messages.words import counted
from vlm2vec.shards.manifest import Manifest
from vlm2vec.shards.schema import fast_hash


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of four rows."""
    root = tmp_path_factory.mktemp("verify")
    converted(make_dataset(root / "MMEB-train"), root / "shards", rows_per_shard=4)
    return root / "shards"


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def reseal(root: Path, **changes: Any) -> None:
    """Makes sidecar and manifest vouch for shard 1 as it is now, so that only looking inside finds the fault."""
    manifest = Manifest.read(root)
    subset = manifest.subsets["A"]
    tar, index, sidecar = (root / f"A/A-00001.{kind}" for kind in ("tar", "parquet", "json"))
    changes |= {"sha256": hashlib.sha256(tar.read_bytes()).hexdigest(), "bytes": tar.stat().st_size}
    changes["index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    shard = replace(subset.shards[1], **changes)
    Manifest(manifest.options, {"A": replace(subset, shards=(subset.shards[0], shard, subset.shards[2]))}).write(root)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


def edit_index(root: Path, column: str, edit: Callable[[Any], Any]) -> None:
    path = root / "A/A-00001.parquet"
    table = pq.read_table(path)
    values = edit(table.column(column).to_numpy().copy())
    number = table.schema.get_field_index(column)
    pq.write_table(table.set_column(number, table.schema.field(number), [values]), path)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def replace_in_tar(root: Path, old: bytes, new: bytes) -> None:
    """Changes a sample of the tar and lets the index' checksums agree."""
    path = root / "A/A-00001.tar"
    content = path.read_bytes()
    assert content.count(old) == 1
    content = content.replace(old, new)
    path.write_bytes(content)
    table = pq.read_table(root / "A/A-00001.parquet")
    spans = zip(table.column("offset").to_pylist(), table.column("size").to_pylist(), strict=True)
    checksums = np.array([fast_hash(content[offset : offset + size]) for offset, size in spans])
    edit_index(root, "checksum", lambda _: checksums)


def add_one(values: Any) -> Any:
    values[2] += 1
    return values


def add_one_to(column: str, root: Path) -> None:
    edit_index(root, column, add_one)
    reseal(root)


INDEX_COLUMNS = ("query_text_length", "query_width", "positive_hash", "query_image_hash")
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "tar absent": (lambda root: (root / "A/A-00001.tar").unlink(), "A-00001.tar: cannot read it (No such file"),
    "index absent": (lambda root: (root / "A/A-00001.parquet").unlink(), "A-00001.parquet: cannot read"),
    "sidecar absent": (lambda root: (root / "A/A-00001.json").unlink(), "A-00001.json: cannot read it"),
    "sidecar differs": (
        lambda root: shutil.copy(root / "A/A-00000.json", root / "A/A-00001.json"),
        "A-00001.json: differs from the manifest",
    ),
    "tar short": (lambda root: os.truncate(root / "A/A-00001.tar", 5000), "A-00001.tar: 5000 bytes, the manifest says"),
    "bit in an image": (lambda root: flip(root / "A/A-00001.tar", 1700), "sample A/00000004: damaged (checksum)"),
    "bit behind the end": (lambda root: flip(root / "A/A-00001.tar", -1), "A-00001.tar: its content has changed"),
    "index of another": (
        lambda root: shutil.copy(root / "A/A-00000.parquet", root / "A/A-00001.parquet"),
        "A-00001.parquet: not the index",
    ),
    "tar of another": (
        lambda root: shutil.copy(root / "A/A-00000.tar", root / "A/A-00001.tar"),
        "A-00001.tar: sample A/00000004: damaged",
    ),
    "unknown tar": (
        lambda root: shutil.copy(root / "A/A-00000.tar", root / "A/A-00003.tar"),
        "A-00003.tar: not in the manifest",
    ),
    "wrong offset": (
        lambda root: [edit_index(root, "offset", add_one), reseal(root)],
        "A-00001.parquet: sample A/00000006 begins at",
    ),
    "wrong row": (
        lambda root: [edit_index(root, "row", lambda rows: rows[::-1]), reseal(root)],
        "sample A/00000007: has members of another key",
    ),
    "header damaged": (
        lambda root: [replace_in_tar(root, b"A/00000005.json\0", b"A/00000005.jsoN\0"), reseal(root)],
        "sample A/00000005: not a sample (InvalidHeaderError: bad checksum",
    ),
    "another text": (
        lambda root: [replace_in_tar(root, b"answer 6", b"answer 7"), reseal(root)],
        "sample A/00000006: differs from the index in positive_hash",
    ),
    "rows lost": (lambda root: reseal(root, rows=(5, 8)), "manifest: A: A-00001 begins at row 5, not at 4"),
    "wrong negative_height": (
        partial(add_one_to, "negative_height"),
        "A-00001.parquet: entry 2: has_negative does not match the negative's sizes",
    ),
    "hash of no image": (
        partial(add_one_to, "negative_image_hash"),
        "A-00001.parquet: entry 2: negative_image_hash is set without an image",
    ),
    **{
        f"wrong {name}": (
            partial(add_one_to, name),
            f"sample A/00000006: differs from the index in {name}",
        )
        for name in INDEX_COLUMNS
    },
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_broken_is_named(
    case: str, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGE[case]
    damage(shards)
    monkeypatch.setattr(sys, "argv", ["verify", str(shards), "--num_workers", "0"])
    assert run_program(program.main) == 3
    *problems, verdict = capsys.readouterr().out.splitlines()
    assert any(message in problem for problem in problems)
    assert all("A-00001" in problem or "A-00003" in problem or "more in this" in problem for problem in problems)
    assert verdict.endswith(counted(len(problems), "problem"))


def test_whole_shards_are_called_whole(mini_shards_dir: Path) -> None:
    for decode in (False, True):
        found = verify(mini_shards_dir, decode, num_workers=2)
        manifest = Manifest.read(mini_shards_dir)
        assert found.problems == ()
        assert found.samples == sum(subset.num_samples for subset in manifest.subsets.values())
        assert found.shards == len(list(mini_shards_dir.rglob("*.tar")))


def test_decoding_finds_half_an_image(dataset: Path, tmp_path: Path) -> None:
    write_half_a_photograph(dataset / "images/A/Train/2.png")
    converted(dataset, tmp_path / "o", check_images="header")
    assert verify(tmp_path / "o").problems == ()
    problems = verify(tmp_path / "o", decode=True).problems
    assert [problem.split(": ")[1] for problem in problems] == [f"sample A/0000000{row}" for row in (2, 5, 8)]
    assert all("damaged or truncated" in problem for problem in problems)


def test_without_a_manifest_there_is_nothing_to_check_against(shards: Path) -> None:
    (shards / "manifest.json").unlink()
    with pytest.raises(InputError, match="no manifest"):
        verify(shards)
