"""Several hard negatives per pair and images per item: writing, indexing, reading, verifying, laying out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from data_prep.verify import verify
from tests.shards.test_version_2 import cost
from trials.rig.hand_made_train import converted, image_bytes, make_dataset, row, tree, write_rows
from trials.rig.several import NUM_ROWS, expected_items, several_rows, write_several
from vlm2vec.batches import GlobalOrder, lay_out
from vlm2vec.errors import InputError
from vlm2vec.shards import DamagedSampleError, ShardSet
from vlm2vec.shards.manifest import Manifest
from vlm2vec.shards.schema import LIST_INDEX_SCHEMA, content_hash, fast_hash


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subset A with several of everything, and B with nothing new."""
    root = tmp_path_factory.mktemp("several") / "MMEB-train"
    make_dataset(root)
    write_several(root, several_rows())
    write_rows(root, [row(number) for number in range(6)], "B/original-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="module")
def shards_dir(source: Path) -> Path:
    converted(source, source.with_name("shards"), ["A", "B"], rows_per_shard=4)
    return source.with_name("shards")


@pytest.fixture
def own_shards(shards_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(shards_dir, tmp_path / "shards"))


def test_samples_are_the_rows_to_the_byte(shards_dir: Path) -> None:
    shards, rows = ShardSet.open(shards_dir), several_rows()
    assert shards.num_samples == {"A": NUM_ROWS, "B": 6}
    for position, values in enumerate(rows):
        sample = shards.read("A", position)
        assert (sample.query, sample.positive, sample.negatives) == expected_items(values)
    manifest = Manifest.read(shards_dir)
    assert manifest.schema_version == 3
    assert {record.index_version for record in manifest.subsets["A"].shards} == {3}
    assert {record.index_version for record in manifest.subsets["B"].shards} == {2}
    assert verify(shards_dir, decode=True).problems == ()


def test_the_index_in_memory_lists_every_item(shards_dir: Path) -> None:
    shards = ShardSet.open(shards_dir)
    columns = shards.columns("A")
    rows = several_rows()
    for name, column in (("query", "qry_image_path"), ("positive", "pos_image_path")):
        counts = np.diff(columns[f"{name}_image_starts"]).tolist()
        assert counts == [len(values[column]) for values in rows]
    assert columns["negative_starts"].tolist() == [sum(n % 4 for n in range(end)) for end in range(NUM_ROWS + 1)]
    assert columns["negative_hash"].tolist() == [
        content_hash(item.text, *item.images) for values in rows for item in expected_items(values)[2]
    ]


def test_webdataset_alone_reads_members_by_their_numbers(shards_dir: Path) -> None:
    tars = sorted(map(str, (shards_dir / "A").glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == NUM_ROWS
    members = [sorted(name for name in sample if name[:3] in ("qry", "pos", "neg")) for sample in samples]
    assert members[0] == ["pos.0.png", "pos.1.png", "qry.png"]
    assert members[1] == ["qry.0.png", "qry.1.png"]
    assert members[2] == ["neg1.0.png", "neg1.1.png", "pos.0.png", "pos.1.png", "qry.0.png", "qry.1.png", "qry.2.png"]
    assert members[3] == ["neg1.0.png", "neg1.1.png", "neg2.png", "qry.png"]
    assert samples[2]["qry.1.png"] == image_bytes(180)
    record = json.loads(samples[3]["json"])
    assert [negative["text"] for negative in record["negatives"]] == ["wrong", "<|image_1|> and <|image_2|> wrong", ""]
    assert [image["path"] for image in record["negatives"][1]["images"]] == [
        f"images/A/Train/{shade}.png" for shade in (1, 2)
    ]
    assert "negative" not in record
    assert json.loads(samples[1]["json"])["negative"] == {"text": "wrong", "image": None}


def test_the_same_bytes_with_workers_and_after_remains_of_a_kill(
    source: Path, shards_dir: Path, tmp_path: Path
) -> None:
    converted(source, tmp_path / "o", ["A", "B"], num_workers=2, rows_per_shard=4)
    assert tree(tmp_path / "o") == tree(shards_dir)
    for name in ("manifest.json", "A/A-00001.json", "A/A-00002.parquet"):
        (tmp_path / "o" / name).unlink()
    converted(source, tmp_path / "o", ["A", "B"], rows_per_shard=4)
    assert tree(tmp_path / "o") == tree(shards_dir)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ragged_negatives_are_laid_out_alike_on_any_number_of_ranks(ranks: int, shards_dir: Path) -> None:
    shards = ShardSet.open(shards_dir)
    for step in range(3):
        batch = GlobalOrder(shards.num_samples, 5, 3).batch(step)
        samples = [
            shards.read(shards.subsets[subset], position)
            for subset, position in zip(batch.subsets.tolist(), batch.positions.tolist(), strict=True)
        ]
        layout = lay_out(batch, shards, cost, ranks, hard_negatives=True)
        items = []
        for each in layout.items:
            item = shards.read(each.subset, each.position).item(each.side, each.number)
            assert item is not None
            items.append(item)
        assert len(set(items)) == len(items) == sum(layout.counts)
        assert layout.negative is not None
        assert layout.negative_row is not None
        assert [items[number] for number in layout.query] == [sample.query for sample in samples]
        assert [items[number] for number in layout.positive] == [sample.positive for sample in samples]
        own = [(row, item) for row, sample in enumerate(samples) for item in sample.negatives]
        rows, numbers = layout.negative_row.tolist(), layout.negative.tolist()
        assert [(row, items[number]) for row, number in zip(rows, numbers, strict=True)] == own
        assert len(own) > 0


def reseal(root: Path) -> None:
    """Lets manifest and sidecar vouch for A's first shard as it is now."""
    manifest = Manifest.read(root)
    subset = manifest.subsets["A"]
    tar, index = (root / f"A/A-00000.{kind}" for kind in ("tar", "parquet"))
    digests: dict[str, Any] = {"sha256": hashlib.sha256(tar.read_bytes()).hexdigest()}
    digests["index_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    shards = (replace(subset.shards[0], **digests), *subset.shards[1:])
    Manifest(manifest.options, {**manifest.subsets, "A": replace(subset, shards=shards)}).write(root)
    sidecar = root / "A/A-00000.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **digests}))


def edit(root: Path, column: str, change: Callable[[Any], Any]) -> None:
    """Gives A's row 3, which has three hard negatives and one image of its query, another entry in the index."""
    path = root / "A/A-00000.parquet"
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[3] = change(values[3])
    field = LIST_INDEX_SCHEMA.field(column)
    pq.write_table(table.set_column(table.schema.get_field_index(column), field, [pa.array(values, field.type)]), path)
    reseal(root)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("query_widths", lambda _: [], "lists of query_heights differ in length from those of other columns"),
        ("negative_hashes", lambda own: own[:2], "lists of negative_hashes differ in length"),
        ("negative_heights", lambda own: own[:2], "lists of negative_heights differ in length"),
        ("negative_heights", lambda own: [[], [9], *own[2:]], "lists of negative_heights differ in length"),
        ("negative_widths", lambda own: [own[0], [7, 0], own[2]], "entry 3: negative_width or negative_height is zero"),
        ("negative_widths", lambda own: [own[0], [-7, 7], own[2]], "entry 3: negative_width or negative_height is neg"),
        ("negative_widths", lambda own: [own[0], [7, 2**31 - 1], own[2]], "entry 3: .* is too many pixels"),
        (
            "negative_text_lengths",
            lambda own: [*own[:2], 2**31 - 1],
            "entry 3: negative_text_length is negative or larger than",
        ),
        ("negative_text_lengths", lambda own: [0, *own[1:]], "entry 3: the negative is empty"),
    ],
)
def test_impossible_lists_are_refused(
    column: str, change: Callable[[Any], Any], message: str, own_shards: Path
) -> None:
    edit(own_shards, column, change)
    with pytest.raises(InputError, match=rf"A-00000\.parquet: .*{message}") as caught:
        ShardSet.open(own_shards)
    assert "\n" not in str(caught.value)


def test_lists_longer_than_the_tar_are_refused_before_they_are_read(own_shards: Path) -> None:
    edit(own_shards, "negative_text_lengths", lambda _: [1] * 100_000)
    with pytest.raises(InputError, match="entries, too many for a tar of"):
        ShardSet.open(own_shards)


@pytest.mark.parametrize(
    ("column", "change", "name"),
    [
        ("negative_hashes", lambda own: [*own[:2], own[2] + 1], "negative_3_hash"),
        ("negative_text_lengths", lambda own: [own[0], own[1] - 1, own[2]], "negative_2_text_length"),
        ("negative_image_hashes", lambda own: [own[0], own[1][::-1], own[2]], "negative_2_image_hash"),
        ("negative_widths", lambda own: [*own[:2], [8]], "negative_3_width"),
        ("query_heights", lambda _: [8], "query_height"),
    ],
)
def test_verify_compares_each_negative_and_image(
    column: str, change: Callable[[Any], Any], name: str, own_shards: Path
) -> None:
    edit(own_shards, column, change)
    assert verify(own_shards).problems == (
        f"{own_shards / 'A/A-00000.tar'}: sample A/00000003: differs from the index in {name}",
    )


@pytest.mark.parametrize("member", [b"A/00000003.neg2.png", b"A/00000003.neg1.1.png"])
def test_damage_in_the_last_negatives_is_found(member: bytes, own_shards: Path) -> None:
    path = own_shards / "A/A-00000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(member) + 512 + 50] ^= 1
    path.write_bytes(content)
    problems = verify(own_shards).problems
    assert problems[0] == f"{path}: sample A/00000003: damaged (checksum)"
    with pytest.raises(DamagedSampleError, match="damaged"):
        ShardSet.open(own_shards).read("A", 3)
    table = pq.read_table(own_shards / "A/A-00000.parquet")  # now the checksums agree with the damage
    spans = zip(table.column("offset").to_pylist(), table.column("size").to_pylist(), strict=True)
    checksums = [fast_hash(bytes(content[offset : offset + size])) for offset, size in spans]
    edit(own_shards, "checksum", lambda _: checksums[3])
    (problem,) = verify(own_shards, decode=True).problems
    assert "sample A/00000003: " in problem
    with pytest.raises(DamagedSampleError, match="does not match the shard's index"):
        ShardSet.open(own_shards).read("A", 3)
