"""Engines on 2 ranks: an exported checkpoint encodes like the live weights, and what bf16 must not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.workers.engine import LIVE, TEXTS
from tests.rig import golden
from tests.rig.comparing import assert_close_relative
from tests.rig.engine_runs import REFERENCE, RUNS
from vlm2vec import VLM2Vec
from vlm2vec.export import export
from vlm2vec.training.checkpoints.writer import find_checkpoint

pytestmark = pytest.mark.numeric

MERGED = "zero2-lora"


@pytest.fixture(scope="module")
def untrained(mini_model_dir: Path) -> torch.Tensor:
    return VLM2Vec.from_pretrained(mini_model_dir).encode(texts=TEXTS)


@pytest.mark.parametrize("name", RUNS)
def test_exported_weights_are_the_live_ones(
    name: str, engine_runs_dir: Path, untrained: torch.Tensor, tmp_path: Path
) -> None:
    run, (_, extra), merge = engine_runs_dir / name, RUNS[name], name == MERGED
    live = torch.load(run / LIVE, weights_only=True)
    assert (live - untrained).abs().max() > 1e-2  # the steps moved something

    _, checked = export(find_checkpoint(run), tmp_path / "exported", merge_lora=merge, check=True)
    exported = VLM2Vec.from_pretrained(tmp_path / "exported").encode(texts=TEXTS)
    assert_close_relative(exported, live, 5e-6)
    assert checked is not None
    assert checked.difference <= 1e-6
    assert checked.is_rounded == ("--bf16" in extra)
    assert (tmp_path / "exported" / "adapter_config.json").exists() == ("--lora" in extra and not merge)
    assert all(file.stat().st_mode & 0o044 for file in (tmp_path / "exported").iterdir())  # others can read it
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_rotary_frequencies_survive_the_engines_cast(engine_runs_dir: Path) -> None:
    """The reference's own bf16 has a worst cosine of 0.998; with cast frequencies it is 0.93."""
    vectors = torch.load(engine_runs_dir / REFERENCE / LIVE, weights_only=True)
    expected = golden.tensors("train/gradients.safetensors")["query_embeddings"]
    assert torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.998
