"""Samples that cannot be read during a run: replaced equally on any number of ranks, reported, limited."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.conversion import convert
from data_prep.conversion_plan import DEFAULT_OPTIONS
from data_prep.source import SourceData
from tests.distributed.workers.ending import UNREACHABLE, UNREACHABLE_STEP, main
from tests.rig.written import add_subset, stored_image
from trials.rig.forked import are_gone, kill, run_ranks, start_forked
from trials.rig.patience import HANG_SECONDS
from trials.rig.run_flags import run_flags
from vlm2vec.messages.words import counted
from vlm2vec.shards import ShardSet
from vlm2vec.shards.writer import StoredItem

pytestmark = pytest.mark.numeric

SUBSETS = ["Photos", "Pairs_t2i"]
ODD = "Odd"
COMMON = [
    *("--subset_name", *SUBSETS, ODD, "--global_batch_size", "16", "--max_steps", "5", "--logging_steps", "1"),
    *("--chunk_tokens", "512", "--learning_rate", "1e-4", "--temperature", "0.05", "--max_len", "64"),
]
UNDECODABLE_ROW, DAMAGED_POSITION = 7, 3
# Whole rows that cannot be encoded: the planner, which runs ahead, finds them.
ODD_ROWS = {
    5: (StoredItem("What is number 5?", (stored_image((40, 30), 5),)), "has no image tag"),
    6: (StoredItem("<|image_1|> What is this?", (stored_image((1, 300), 6),)), "is too thin"),
}


@pytest.fixture(scope="module")
def bad_shards(mini_mmeb_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with half an image (its checksum is right), a bit that flipped after the conversion, and odd rows."""
    root = tmp_path_factory.mktemp("bad")
    train = Path(shutil.copytree(mini_mmeb_dir / "MMEB-train", root / "train"))
    images = sorted((train / "images" / "Photos" / "Train").iterdir())
    convert(SourceData(train, train, SUBSETS), root / "whole", replace(DEFAULT_OPTIONS, rows_per_shard=16))
    whole = ShardSet.open(root / "whole")
    target = whole.read("Photos", UNDECODABLE_ROW).query.image
    (image,) = [path for path in images if path.read_bytes() == target]
    os.truncate(image, image.stat().st_size * 2 // 3)
    assert (
        convert(
            SourceData(train, train, SUBSETS),
            root / "shards",
            replace(DEFAULT_OPTIONS, rows_per_shard=16, check_images="none"),
        ).manifest
        is not None
    )
    tar = root / "shards" / "Pairs_t2i" / "Pairs_t2i-00000.tar"
    content = bytearray(tar.read_bytes())
    content[int(whole.columns("Pairs_t2i")["offset"][DAMAGED_POSITION]) + 600] ^= 1
    tar.write_bytes(content)
    plain = [StoredItem(f"<|image_1|> What is number {row}?", (stored_image((40, 30), row),)) for row in range(16)]
    add_subset(root / "shards", ODD, [ODD_ROWS.get(row, (query, ""))[0] for row, query in enumerate(plain)])
    return root / "shards"


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_they_are_replaced_alike_on_any_number_of_ranks_and_workers(
    bad_shards: Path, mini_model_dir: Path, tmp_path: Path
) -> None:
    for ranks, workers in ((1, "0"), (2, "1")):
        own = [*COMMON, "--dataloader_num_workers", workers]
        runs = [run_flags(mini_model_dir, bad_shards, tmp_path / f"{ranks}", "zero2", *own)]
        (tmp_path / "runs.json").write_text(json.dumps(runs))
        output = run_ranks(ranks, ["-m", "tests.distributed.workers.training", str(tmp_path / "runs.json")], tmp_path)
        assert "replaced an unreadable sample" in output[0]
    alone, shared = lines(tmp_path / "1"), lines(tmp_path / "2")
    told = [line["bad_sample"] for line in alone if "bad_sample" in line]
    assert len(told) == 2 + len(ODD_ROWS)
    for row, (_, reason) in ODD_ROWS.items():
        assert any(f"{ODD}/{row:08d} (query)" in each and reason in each for each in told)
    assert any(f"Photos/{UNDECODABLE_ROW:08d} (query)" in reason for reason in told)
    assert any(f"Pairs_t2i/{DAMAGED_POSITION:08d} is damaged" in reason for reason in told)
    assert [line for line in alone if "bad_sample" in line] == [line for line in shared if "bad_sample" in line]
    steps = [[line for line in each if "loss" in line] for each in (alone, shared)]
    assert [line["step"] for line in steps[0]] == [1, 2, 3, 4, 5]
    assert steps[0][-1]["bad_samples"] == len(told)
    for ours, theirs in zip(*steps, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["bad_samples"] == theirs["bad_samples"]
    events = EventAccumulator(str(tmp_path / "1" / "tensorboard"))
    events.Reload()
    assert events.Scalars("data/bad_samples")[-1].value == len(told)
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("bad_samples/text_summary")]
    assert texts == told
    record = json.loads((tmp_path / "2" / "checkpoint-5" / "run.json").read_text())
    assert {(each["subset"], each["position"]) for each in record["bad_samples"]} == {
        ("Photos", UNDECODABLE_ROW),
        ("Pairs_t2i", DAMAGED_POSITION),
        *((ODD, row) for row in ODD_ROWS),
    }
    one_too_many(bad_shards, mini_model_dir, tmp_path, told, [line["loss"] for line in steps[1]])


def one_too_many(shards: Path, model: Path, folder: Path, told: Sequence[object], losses: Sequence[object]) -> None:
    """A run that may not replace as many ends with one line, and continues as if nothing had happened when it may."""
    own = [*COMMON, "--dataloader_num_workers", "1", "--save_steps", "1"]
    run = run_flags(model, shards, folder / "ended", "zero2", *own)
    codes, outputs = ended([*run, "--max_bad_samples", str(len(told) - 1)], folder / "few")
    assert codes == [2, 2], outputs
    [error] = [line for output in outputs for line in output.splitlines() if line.startswith("error: ")]
    assert error.startswith(
        f"error: {counted(len(told), 'unreadable sample')}, --max_bad_samples allows {len(told) - 1}: "
    )
    assert all(str(reason) in error for reason in told)
    done = [line for line in lines(folder / "ended") if "loss" in line]
    codes, outputs = ended([*run, "--max_bad_samples", str(len(told)), "--resume", "auto"], folder / "many")
    assert codes == [0, 0], outputs
    assert 0 < len(done) < len(losses)
    assert [line["loss"] for line in lines(folder / "ended") if "loss" in line] == pytest.approx(losses, rel=1e-5)


def ended(
    arguments: list[str], log_dir: Path, unreachable_rank: int | None = None
) -> tuple[list[int | None], list[str]]:
    """Exit codes and outputs of two ranks of the training program; none of their loader workers is left."""
    log_dir.mkdir()
    ranks = start_forked(2, main, [arguments, unreachable_rank], log_dir)
    deadline = time.monotonic() + HANG_SECONDS
    while any(rank.exitcode is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    codes = [rank.exitcode for rank in ranks]
    assert are_gone([rank.pid for rank in ranks])
    kill(ranks)
    outputs = [(log_dir / f"rank{rank}.log").read_text(errors="replace") for rank in range(2)]
    assert not any(word in output for output in outputs for word in ("Traceback", "Timeout", "leaked")), outputs
    return codes, outputs


def test_bad_input_on_one_rank_ends_all_with_one_line(bad_shards: Path, mini_model_dir: Path, tmp_path: Path) -> None:
    """Rank 1's planner cannot reach the data any more, while rank 0 waits in a collective."""
    own = [*COMMON, "--dataloader_num_workers", "1"]
    arguments = run_flags(mini_model_dir, bad_shards, tmp_path / "run", "zero2", *own)
    codes, outputs = ended(arguments, tmp_path / "log", unreachable_rank=1)
    assert codes == [2, 2], outputs
    errors = [line for output in outputs for line in output.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {UNREACHABLE}"]
    assert len([line for line in lines(tmp_path / "run") if "loss" in line]) == UNREACHABLE_STEP


def test_two_ranks_agree_on_data_output_folder_and_bad_samples(tmp_path: Path) -> None:
    run_ranks(2, ["-m", "tests.distributed.workers.agreement", str(tmp_path)], tmp_path)
