"""Peak memory of a rank does not grow with the global batch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_prep.conversion import convert
from data_prep.mini.models.phi3_v import VISION
from data_prep.mini_mmeb import TRAIN_FOLDER, build_mini_mmeb
from data_prep.mini_model import build_mini_model
from data_prep.source import SourceData
from trials.rig.forked import run_ranks
from trials.rig.run_flags import run_flags

# One image is 1 MB of crops: all images of the large batch at once would double the process.
CROP_SIZE = 128
GROWTH = 1.10


def peak_mib(model: Path, shards: Path, work: Path, global_batch_size: int) -> float:
    work.mkdir()
    (output,) = run_ranks(
        1,
        [
            *("-m", "tests.distributed.workers.memory"),
            *run_flags(model, shards, work / "run", "zero2"),
            *("--global_batch_size", str(global_batch_size), "--max_steps", "1", "--chunk_tokens", "512"),
            *("--no_grad_chunk_tokens", "512", "--dataloader_num_workers", "0", "--temperature", "0.05"),
        ],
        work,
    )
    found = re.search(r"peak MiB ([\d.]+)", output)
    assert found is not None, output
    return float(found[1])


def test_peak_memory_is_flat_from_64_to_1024_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_mini_mmeb(tmp_path / "mini", seed=0, scale=0.04)
    train = tmp_path / "mini" / TRAIN_FOLDER
    convert(SourceData(train, train, ["all"]), tmp_path / "shards")
    monkeypatch.setitem(VISION, "image_size", CROP_SIZE)
    monkeypatch.setitem(VISION, "patch_size", CROP_SIZE // 2)
    build_mini_model(train, tmp_path / "model")
    small = peak_mib(tmp_path / "model", tmp_path / "shards", tmp_path / "small", 32)
    large = peak_mib(tmp_path / "model", tmp_path / "shards", tmp_path / "large", 512)
    assert large < GROWTH * small, f"{small:.0f} MiB at 64 items, {large:.0f} MiB at 1,024"
