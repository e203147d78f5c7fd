from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import webdataset

from vlm2vec.images.decode import read_header
from vlm2vec.shards.manifest import Manifest
from vlm2vec.shards.writer import ShardWriter, StoredItem


def test_webdataset_alone_reads_the_manifests_counts(mini_shards_dir: Path) -> None:
    manifest = Manifest.read(mini_shards_dir)
    for name, subset in manifest.subsets.items():
        tars = [str(mini_shards_dir / name / f"{shard.name}.tar") for shard in subset.shards]
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert len(samples) == subset.num_samples
        assert len({sample["__key__"] for sample in samples}) == subset.num_samples
        for sample in samples:
            record = json.loads(sample["json"])
            assert record["subset"] == name
            assert sample["__key__"] == f"{name}/{record['row']:08d}"
            for side, prefix in (("query", "qry"), ("positive", "pos"), ("negative", "neg")):
                members = [member for member in sample if member.startswith(prefix)]
                image = (record[side] or {}).get("image")
                assert len(members) == (1 if image else 0)
                if image:
                    header = read_header(sample[members[0]], sample["__key__"])
                    assert (members[0], image["width"], image["height"]) == (
                        f"{prefix}.{header.extension}",
                        header.width,
                        header.height,
                    )


def test_tars_are_plain_ustar_without_time_or_owner(mini_shards_dir: Path) -> None:
    tars = sorted(mini_shards_dir.rglob("*.tar"))
    assert tars
    for path in tars:
        content = path.read_bytes()
        assert content[257:263] == b"ustar\0"
        with tarfile.open(path) as tar:
            for member in tar:
                stated = (member.type, member.mtime, member.mode, member.uid, member.gid, member.uname, member.gname)
                assert stated == (tarfile.REGTYPE, 0, 0o444, 0, 0, "", "")
                assert member.pax_headers == {}


def test_records_describe_the_files(mini_shards_dir: Path) -> None:
    manifest = Manifest.read(mini_shards_dir)
    for name, subset in manifest.subsets.items():
        folder = mini_shards_dir / name
        assert {path.name for path in folder.iterdir()} == {
            f"{shard.name}.{kind}" for shard in subset.shards for kind in ("tar", "parquet", "json")
        }
        for shard in subset.shards:
            content = (folder / f"{shard.name}.tar").read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
            sidecar = json.loads((folder / f"{shard.name}.json").read_text())
            assert (sidecar["sha256"], sidecar["rows"]) == (shard.sha256, list(shard.rows))


ANSWER = StoredItem("answer")


def test_an_error_before_the_commit_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError), ShardWriter(tmp_path, "A-00000", "A") as shard:
        shard.add(0, StoredItem(b"bytes"), ANSWER)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_sidecar_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("vlm2vec.shards.writer.write_index", broken)
    with ShardWriter(tmp_path, "A-00000", "A") as shard:
        shard.add(0, StoredItem("question"), ANSWER)
        with pytest.raises(OSError, match="disk full"):
            shard.commit((0, 1), {})
    assert [path.name for path in tmp_path.iterdir()] == ["A-00000.tar"]


def test_any_text_survives(tmp_path: Path) -> None:
    text = 'quote " backslash \\ newline \n tab \t NUL \0 umlaut ä 漢字 \U0001f600 line separator \u2028'
    with ShardWriter(tmp_path, "A-00000", "A") as shard:
        shard.add(41, StoredItem(text), ANSWER)
        record = shard.commit((0, 50), {"empty query": 49})
    assert record.num_samples == 1
    (sample,) = webdataset.WebDataset([str(tmp_path / "A-00000.tar")], shardshuffle=False)
    assert json.loads(sample["json"])["query"] == {"text": text, "image": None}
