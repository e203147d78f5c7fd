"""Samples that turn out unreadable in a run: replaced alike on any number of ranks, reported, limited."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.convert import convert
from tests.distributed.forked import run_ranks
from tests.distributed.launcher import REPOSITORY
from vlm2vec.shards import ShardSet

pytestmark = pytest.mark.numeric

SUBSETS = ["Photos", "Pairs_t2i"]
UNDECODABLE_ROW, DAMAGED_POSITION = 7, 3


@pytest.fixture(scope="module")
def bad_shards(mini_mmeb_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with half a picture in them (its checksum is right), and a bit that flipped after the conversion."""
    root = tmp_path_factory.mktemp("bad")
    train = Path(shutil.copytree(mini_mmeb_dir / "MMEB-train", root / "train"))
    pictures = sorted((train / "images" / "Photos" / "Train").iterdir())
    convert(train, train, root / "whole", SUBSETS, rows_per_shard=16)
    whole = ShardSet.open(root / "whole")
    target = whole.read("Photos", UNDECODABLE_ROW).query.image
    (picture,) = [path for path in pictures if path.read_bytes() == target]
    os.truncate(picture, picture.stat().st_size * 2 // 3)
    assert convert(train, train, root / "shards", SUBSETS, rows_per_shard=16, check_images="none").manifest is not None
    tar = root / "shards" / "Pairs_t2i" / "Pairs_t2i-00000.tar"
    content = bytearray(tar.read_bytes())
    content[int(whole.columns("Pairs_t2i")["offset"][DAMAGED_POSITION]) + 600] ^= 1
    tar.write_bytes(content)
    return root / "shards"


def flags(model: Path, shards: Path, output: Path, *extra: str) -> list[str]:
    return [
        *("--model_name", str(model), "--dataset_name", str(shards), "--output_dir", str(output)),
        *("--deepspeed", str(REPOSITORY / "ds_configs/zero2.json"), "--subset_name", *SUBSETS),
        *("--global_batch_size", "16", "--max_steps", "5", "--logging_steps", "1", "--chunk_tokens", "512"),
        *("--learning_rate", "1e-4", "--temperature", "0.05", "--max_len", "64", *extra),
    ]


def lines(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_they_are_replaced_alike_on_any_number_of_ranks_and_workers(
    bad_shards: Path, mini_model_dir: Path, tmp_path: Path
) -> None:
    for ranks, workers in ((1, "0"), (2, "1")):
        runs = [flags(mini_model_dir, bad_shards, tmp_path / f"{ranks}", "--dataloader_num_workers", workers)]
        (tmp_path / "runs.json").write_text(json.dumps(runs))
        output = run_ranks(ranks, ["-m", "tests.distributed.training_worker", str(tmp_path / "runs.json")], tmp_path)
        assert "replaced an unreadable sample" in output[0]
    alone, shared = lines(tmp_path / "1"), lines(tmp_path / "2")
    told = [line["bad_sample"] for line in alone if "bad_sample" in line]
    assert len(told) == 2
    assert any(f"Photos/{UNDECODABLE_ROW:08d} (query)" in reason for reason in told)
    assert any(f"Pairs_t2i/{DAMAGED_POSITION:08d} is damaged" in reason for reason in told)
    assert [line for line in alone if "bad_sample" in line] == [line for line in shared if "bad_sample" in line]
    steps = [[line for line in each if "loss" in line] for each in (alone, shared)]
    assert [line["step"] for line in steps[0]] == [1, 2, 3, 4, 5]
    assert steps[0][-1]["bad_samples"] == 2
    for ours, theirs in zip(*steps, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["bad_samples"] == theirs["bad_samples"]
    events = EventAccumulator(str(tmp_path / "1" / "tensorboard"))
    events.Reload()
    assert events.Scalars("run/bad_samples")[-1].value == 2
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("bad_samples/text_summary")]
    assert texts == told
    record = json.loads((tmp_path / "2" / "checkpoint-5" / "run.json").read_text())
    assert {(each["subset"], each["position"]) for each in record["bad_samples"]} == {
        ("Photos", UNDECODABLE_ROW),
        ("Pairs_t2i", DAMAGED_POSITION),
    }


def test_two_ranks_agree_on_their_data_and_on_what_of_it_is_bad(tmp_path: Path) -> None:
    run_ranks(2, ["-m", "tests.distributed.agreement_worker"], tmp_path)
