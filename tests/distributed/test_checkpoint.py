"""A checkpoint of ranks, exported, encodes what the live weights encoded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.checkpoint_worker import TEXTS
from tests.distributed.launcher import REPOSITORY, run_ranks
from vlm2vec import VLM2Vec
from vlm2vec.export import export
from vlm2vec.training.checkpoint import find_checkpoint


@pytest.mark.parametrize(
    ("ranks", "stage", "flags", "merge"),
    [
        (2, 1, [], False),
        (2, 2, [], False),
        (2, 3, [], False),
        (2, 3, ["--lora", "--lora_r", "4"], False),
        (1, 2, ["--lora"], True),
    ],
)
def test_exported_weights_are_the_live_ones(
    ranks: int, stage: int, flags: list[str], merge: bool, mini_model_dir: Path, tmp_path: Path
) -> None:
    run_ranks(
        ranks,
        [
            *("-m", "tests.distributed.checkpoint_worker", "--work", str(tmp_path)),
            *("--model_name", str(mini_model_dir), "--dataset_name", "unused", "--output_dir", "unused"),
            *("--deepspeed", str(REPOSITORY / f"ds_configs/zero{stage}.json"), "--max_steps", "2"),
            *("--global_batch_size", "2", "--learning_rate", "1e-2", *flags),
        ],
        tmp_path,
    )
    live = torch.load(tmp_path / "live.pt", weights_only=True)
    untrained = VLM2Vec.from_pretrained(mini_model_dir).encode(texts=TEXTS)
    assert (live - untrained).abs().max() > 1e-2  # the steps moved something

    export(find_checkpoint(tmp_path), tmp_path / "exported", merge_lora=merge)
    exported = VLM2Vec.from_pretrained(tmp_path / "exported").encode(texts=TEXTS)
    torch.testing.assert_close(exported, live, rtol=0, atol=1e-6)
    assert (tmp_path / "exported" / "adapter_config.json").exists() == bool(flags and not merge)
    assert all(file.stat().st_mode & 0o044 for file in (tmp_path / "exported").iterdir())  # others can read it
    assert not list(tmp_path.glob(".tmp-*"))
    assert not list(tmp_path.glob(".adapter-*"))
