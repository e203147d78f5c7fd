from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trials.rig.patience import HANG_SECONDS
from vlm2vec.errors import InputError
from vlm2vec.images.decode import read_header
from vlm2vec.mmeb import MINI_MMEB
from vlm2vec.shards import DamagedSampleError, Item, Sample, ShardSet, content_hash, storage
from vlm2vec.shards.columns import entry_at
from vlm2vec.shards.entry import ItemEntry
from vlm2vec.shards.manifest import Manifest
from vlm2vec.shards.schema import INDEX_SCHEMA, fast_hash

NAMES = [subset.name for subset in MINI_MMEB.train_subsets]


@pytest.fixture
def own_shards(mini_shards_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(mini_shards_dir, tmp_path / "shards"))


def reseal(root: Path) -> None:
    """Lets the manifest vouch for the first Photos index as it is now, as a faulty writer would."""
    manifest = Manifest.read(root)
    photos = manifest.subsets["Photos"]
    digest = hashlib.sha256((root / "Photos/Photos-00000.parquet").read_bytes()).hexdigest()
    shards = (replace(photos.shards[0], index_sha256=digest), *photos.shards[1:])
    Manifest(manifest.options, {**manifest.subsets, "Photos": replace(photos, shards=shards)}).write(root)


def expected_item(root: Path, text: str, path: str) -> Item:
    return Item(text, ((root / path).read_bytes(),) if path else ())


@pytest.mark.parametrize("subset", NAMES)
def test_samples_are_the_source_rows_to_the_byte(subset: str, mini_mmeb_dir: Path, mini_shards_dir: Path) -> None:
    train = mini_mmeb_dir / "MMEB-train"
    rows = pq.read_table(train / subset / "original-00000-of-00001.parquet").to_pylist()
    shards = ShardSet.open(mini_shards_dir)
    assert shards.num_samples[subset] == len(rows)
    for position, row in enumerate(rows):
        negatives = (expected_item(train, row["neg_text"], row["neg_image_path"]),) if "neg_text" in row else ()
        assert shards.read(subset, position) == Sample(
            key=f"{subset}/{position:08d}",
            subset=subset,
            row=position,
            query=expected_item(train, row["qry"], row["qry_image_path"]),
            positive=expected_item(train, row["pos_text"], row["pos_image_path"]),
            negatives=negatives,
        )


@pytest.mark.parametrize("subset", NAMES)
def test_index_describes_the_samples(subset: str, mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir)
    columns = shards.columns(subset)
    assert not any("image_hash" in name for name in columns)  # training does not hold what serves statistics
    for position in range(shards.num_samples[subset]):
        sample = shards.read(subset, position)
        entry = entry_at(columns, position)
        items = [sample.query, sample.positive, *sample.negatives]
        for item, (_, described) in zip(items, entry.items(), strict=True):
            headers = [read_header(image, sample.key) for image in item.images]
            sizes = tuple((header.width, header.height) for header in headers)
            assert described == ItemEntry(len(item.text), content_hash(item.text, *item.images), sizes)
        assert int(columns["row"][position]) == sample.row
    with pytest.raises(ValueError, match="read-only"):
        columns["row"][0] = 1


def test_subsets_can_be_chosen(mini_shards_dir: Path) -> None:
    whole = ShardSet.open(mini_shards_dir)
    part = ShardSet.open(str(mini_shards_dir), ["WebDigits", "Photos"])
    assert set(whole.subsets) == set(NAMES)
    assert part.subsets == ("WebDigits", "Photos")
    assert part.num_samples == {name: whole.num_samples[name] for name in ("WebDigits", "Photos")}
    assert part.fingerprint == whole.fingerprint
    with pytest.raises(InputError, match="no subset Digits; the subsets are"):
        ShardSet.open(mini_shards_dir, ["Digits"])
    with pytest.raises(InputError, match="Photos is given twice"):
        ShardSet.open(mini_shards_dir, ["Photos", "Photos"])


def test_positions_out_of_range(mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir)
    for position in (-1, shards.num_samples["Photos"]):
        with pytest.raises(IndexError, match="Photos has"):
            shards.read("Photos", position)


def test_few_files_stay_open(mini_shards_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_OPEN_TARS", 3)
    shards = ShardSet.open(mini_shards_dir)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for name in shards.subsets:
            for position in (0, shards.num_samples[name] - 1):
                shards.read(name, position)
                assert len(os.listdir("/proc/self/fd")) <= before + 3
    del shards
    assert len(os.listdir("/proc/self/fd")) == before


def _read_all(shards: ShardSet, queue: multiprocessing.Queue[list[Sample]]) -> None:
    queue.put([shards.read(name, position) for name in shards.subsets for position in range(4)])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_worker_process_reads_the_same(method: str, mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir, ["PairVQA", "Photos"])
    here = [shards.read(name, position) for name in shards.subsets for position in range(4)]
    context: Any = multiprocessing.get_context(method)
    queue: multiprocessing.Queue[list[Sample]] = context.Queue()
    worker = context.Process(target=_read_all, args=(shards, queue))
    worker.start()
    assert queue.get(timeout=HANG_SECONDS) == here
    worker.join(timeout=HANG_SECONDS)
    assert worker.exitcode == 0


def test_a_pickle_holds_no_sample_data(mini_shards_dir: Path) -> None:
    shards = ShardSet.open(mini_shards_dir)
    shards.read("Photos", 0)
    pickled = pickle.dumps(shards)
    assert len(pickled) < 20_000
    assert pickle.loads(pickled).read("Photos", 5) == shards.read("Photos", 5)


def test_a_damaged_span_is_named_and_its_neighbours_still_read(own_shards: Path) -> None:
    shards = ShardSet.open(own_shards)
    columns = shards.columns("Photos")
    path = own_shards / "Photos" / "Photos-00000.tar"
    for place in (0, 512, int(columns["size"][3]) - 600):  # tar header, JSON, image
        content = bytearray(path.read_bytes())
        content[int(columns["offset"][3]) + place] ^= 1
        path.write_bytes(content)
        fresh = ShardSet.open(own_shards)
        with pytest.raises(InputError, match=r"Photos-00000\.tar: sample Photos/00000003 is damaged"):
            fresh.read("Photos", 3)
        fresh.read("Photos", 2)
        fresh.read("Photos", 4)
        content[int(columns["offset"][3]) + place] ^= 1
        path.write_bytes(content)


def test_an_index_of_another_tar_is_found_even_if_checksums_agree(own_shards: Path) -> None:
    index = own_shards / "Photos" / "Photos-00000.parquet"
    table = pq.read_table(index)
    rows = np.asarray(table.column("row")).copy()
    rows[[0, 1]] = rows[[1, 0]]
    pq.write_table(table.set_column(0, INDEX_SCHEMA.field(0), [rows]), index)
    with pytest.raises(InputError, match=r"Photos-00000\.parquet: not the index that the manifest names"):
        ShardSet.open(own_shards)
    reseal(own_shards)
    with pytest.raises(
        InputError, match=r"Photos-00000\.parquet: entry 1: row is not above the row of the sample before"
    ):
        ShardSet.open(own_shards)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("size", 2**62, "size is not within the tar's"),
        ("size", -512, "size is not within the tar's"),
        ("offset", 2**62, "offset is not within the tar's"),
        ("offset", 512, "offset is not where the sample before ends"),
        ("row", 2**40, "row is not one of 0 to 15"),
        ("row", 2, "row is not above the row of the sample before"),
        ("query_width", -1, "query_width or query_height is negative"),
        ("query_width", 2**31 - 1, "query_width x query_height is too many pixels"),
        ("positive_width", 7, "positive_width or positive_height is zero"),
        ("positive_text_length", 2**31 - 1, "positive_text_length is negative or larger than the sample"),
        ("positive_text_length", 0, "the positive is empty"),
        ("negative_text_length", 3, "has_negative does not match the negative's sizes"),
        ("has_negative", True, "has_negative does not match the negative's sizes"),
        ("negative_hash", 9, "negative_hash is set without a negative"),
    ],
)
def test_impossible_index_values_are_refused_even_if_checksums_agree(
    column: str, value: int, message: str, own_shards: Path
) -> None:
    edit_index(own_shards, column, value)
    with pytest.raises(InputError, match=rf"Photos-00000\.parquet: entry 3: {message}"):
        ShardSet.open(own_shards)


def edit_index(root: Path, column: str, value: int) -> None:
    """Gives the fourth entry of the first Photos index another value."""
    index = root / "Photos" / "Photos-00000.parquet"
    table = pq.read_table(index)
    if column in ("has_negative", "negative_hash", "negative_text_length"):  # Photos has negatives: one without
        for name in ("text_length", "width", "height", "hash", "image_hash"):
            table = with_value(table, f"negative_{name}", 0)
        table = with_value(table, "has_negative", False)
    pq.write_table(with_value(table, column, value), index)
    reseal(root)


def with_value(table: pa.Table, column: str, value: int) -> pa.Table:
    number = table.schema.get_field_index(column)
    values = table.column(number).to_numpy().copy()
    values[3] = value
    return table.set_column(number, INDEX_SCHEMA.field(number), [values])


@pytest.mark.parametrize("column", ["query_width", "query_height", "positive_text_length", "positive_hash"])
def test_a_sample_that_is_not_what_batches_were_planned_by_is_damaged(column: str, own_shards: Path) -> None:
    edit_index(own_shards, column, 1)
    shards = ShardSet.open(own_shards)
    shards.read("Photos", 2)
    with pytest.raises(DamagedSampleError, match="sample Photos/00000003 does not match the shard's index"):
        shards.read("Photos", 3)


def test_a_tar_that_vanishes_later_is_named(own_shards: Path) -> None:
    shards = ShardSet.open(own_shards)
    (own_shards / "Photos" / "Photos-00000.tar").unlink()
    with pytest.raises(InputError, match=r"Photos-00000\.tar: cannot read sample Photos/00000000"):
        shards.read("Photos", 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "manifest.json").unlink(), "no manifest: the conversion is not complete"),
        (lambda root: (root / "manifest.json").write_text("{"), "manifest.json: cannot read"),
        (lambda root: (root / "manifest.json").write_text("[]"), "manifest.json: not a manifest"),
        (lambda root: (root / "Photos/Photos-00001.tar").unlink(), "Photos-00001.tar: missing shard"),
        (lambda root: os.truncate(root / "Photos/Photos-00001.tar", 4096), "Photos-00001.tar: has 4096 bytes"),
        (lambda root: (root / "Photos/Photos-00001.parquet").unlink(), "Photos-00001.parquet: cannot read"),
        (lambda root: os.truncate(root / "Photos/Photos-00001.parquet", 99), "Photos-00001.parquet: not the index"),
        (
            lambda root: shutil.copy(root / "Photos/Photos-00000.parquet", root / "Photos/Photos-00001.parquet"),
            "Photos-00001.parquet: not the index",
        ),
        (
            lambda root: [os.truncate(root / "Photos/Photos-00000.parquet", 99), reseal(root)],
            "Photos-00000.parquet: cannot read",
        ),
        (
            lambda root: [
                shutil.copy(root / "Photos/Photos-00001.parquet", root / "Photos/Photos-00000.parquet"),
                reseal(root),
            ],
            "Photos-00000.parquet: has 12 samples, the manifest states 16",
        ),
        (
            lambda root: [
                pq.write_table(
                    pq.read_table(root / "Photos/Photos-00000.parquet").drop_columns("checksum"),
                    root / "Photos/Photos-00000.parquet",
                ),
                reseal(root),
            ],
            "Photos-00000.parquet: the columns are not this version's",
        ),
    ],
)
def test_incomplete_or_damaged_folders_are_refused_when_opened(
    damage: Callable[[Path], object], message: str, own_shards: Path
) -> None:
    damage(own_shards)
    with pytest.raises(InputError, match=message) as caught:
        ShardSet.open(own_shards)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.update(schema_version=1), "schema version 1, this code reads 2"),
        (lambda content: content.pop("subsets"), "manifest.json: subsets is missing"),
        (lambda content: content["subsets"].update({"../evil": content["subsets"]["Photos"]}), "not a subset's name"),
        (lambda content: content["subsets"]["Photos"]["shards"][0].update(name="../x"), "in the place of"),
        (lambda content: content["subsets"]["Photos"]["shards"][0].update(surprise=1), "Photos.shards.0.surprise"),
        (
            lambda content: content["subsets"]["Photos"]["shards"][0].update(num_samples=1),
            "not the sum over its shards",
        ),
        (
            lambda content: content["subsets"]["Photos"]["shards"][0].update(unique_images=1),
            "does not match the finger",
        ),
        (lambda content: content["subsets"]["Photos"]["shards"][0].update(num_samples=10**9), "do not fit into"),
        (
            lambda content: content["subsets"]["Photos"]["shards"][0].update(num_samples=1e15),
            "num_samples is 1000000000",
        ),
        (
            lambda content: content["subsets"]["Photos"]["shards"][0].update(sha256=None),
            "shards.0.sha256 is null; input",
        ),
        (
            lambda content: content["subsets"]["Photos"]["shards"][0].update(rows=[4, 2]),
            "the range of rows ends before it starts",
        ),
        (lambda content: content["subsets"]["Photos"]["shards"][0].update(bytes=-1), "shards.0.bytes is -1"),
    ],
)
def test_edited_manifests_are_refused(edit: Callable[[dict[str, Any]], object], message: str, own_shards: Path) -> None:
    path = own_shards / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        ShardSet.open(own_shards)


def test_the_checksum_is_that_of_the_span_on_disk(mini_shards_dir: Path) -> None:
    columns = ShardSet.open(mini_shards_dir).columns("WebDigits")
    tar = (mini_shards_dir / "WebDigits" / "WebDigits-00000.tar").read_bytes()
    for position in range(16):
        offset, size = int(columns["offset"][position]), int(columns["size"][position])
        assert fast_hash(tar[offset : offset + size]) == int(columns["checksum"][position])
        assert offset % 512 == size % 512 == 0
