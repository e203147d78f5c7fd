"""Engines on 2 ranks: a checkpoint, exported, encodes what the live weights encoded; what bf16 must not touch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import golden
from tests.distributed.engine_worker import LIVE, TEXTS
from tests.distributed.launcher import REPOSITORY, run_ranks
from vlm2vec import VLM2Vec
from vlm2vec.export import export
from vlm2vec.training.checkpoint import find_checkpoint

# The ZeRO stage and what else differs. ZeRO-3 comes last: its engine replaces torch.nn.functional.linear for the rest
# of the process.
RUNS: dict[str, tuple[int, list[str]]] = {
    "zero1": (1, ["--freeze_vision_tower"]),
    "zero1-bf16": (1, ["--bf16"]),
    "zero2": (2, []),
    "zero2-bf16": (2, ["--bf16"]),
    "zero2-lora": (2, ["--lora"]),
    "zero3": (3, ["--freeze_projector"]),
    "zero3-lora": (3, ["--lora", "--lora_r", "4"]),
}
MERGED = "zero2-lora"
REFERENCE = "reference-bf16"


def flags(model: Path, output: Path, stage: int, *extra: str) -> list[str]:
    return [
        *("--model_name", str(model), "--dataset_name", "unused", "--output_dir", str(output)),
        *("--deepspeed", str(REPOSITORY / f"ds_configs/zero{stage}.json"), "--max_steps", "2"),
        *("--global_batch_size", "2", "--learning_rate", "1e-2", *extra),
    ]


@pytest.fixture(scope="module")
def runs(golden_model_dir: Path, mini_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks left: a folder for each of RUNS, and one for the reference model."""
    root = tmp_path_factory.mktemp("engines")
    jobs = [("encode reference", flags(golden_model_dir, root / REFERENCE, 2, "--bf16"))]
    jobs += [
        ("train and save", flags(mini_model_dir, root / name, stage, *extra)) for name, (stage, extra) in RUNS.items()
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(2, ["-m", "tests.distributed.engine_worker", str(root / "jobs.json")], root, timeout=240)
    return root


@pytest.fixture(scope="module")
def untrained(mini_model_dir: Path) -> torch.Tensor:
    return VLM2Vec.from_pretrained(mini_model_dir).encode(texts=TEXTS)


@pytest.mark.parametrize("name", RUNS)
def test_exported_weights_are_the_live_ones(name: str, runs: Path, untrained: torch.Tensor) -> None:
    run, (_, extra), merge = runs / name, RUNS[name], name == MERGED
    live = torch.load(run / LIVE, weights_only=True)
    assert (live - untrained).abs().max() > 1e-2  # the steps moved something

    export(find_checkpoint(run), run / "exported", merge_lora=merge)
    exported = VLM2Vec.from_pretrained(run / "exported").encode(texts=TEXTS)
    torch.testing.assert_close(exported, live, rtol=0, atol=1e-6)
    assert (run / "exported" / "adapter_config.json").exists() == ("--lora" in extra and not merge)
    assert all(file.stat().st_mode & 0o044 for file in (run / "exported").iterdir())  # others can read it
    assert not list(run.glob(".tmp-*"))
    assert not list(run.glob(".adapter-*"))


def test_rotary_frequencies_survive_the_engines_cast(runs: Path) -> None:
    """The reference's own bf16 has a worst cosine of 0.998; with cast frequencies it is 0.93."""
    vectors = torch.load(runs / REFERENCE / LIVE, weights_only=True)
    expected = golden.tensors("train/gradients.safetensors")["query_embeddings"]
    assert torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.998
